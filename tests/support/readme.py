"""The README as data: its fenced blocks, and the heading that each stands under."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
_PIECE = re.compile(
    r"^#+ (?P<heading>[^\n]+)$"
    r"|^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block."""

    heading: str
    language: str
    text: str
    line: int  # of the file, on which the text begins


def text() -> str:
    """The whole page."""
    return README.read_text(encoding="utf-8")


def blocks(language: str) -> list[Block]:
    """Every fenced block of a language, in order."""
    found, heading, page = [], "", text()
    for piece in _PIECE.finditer(page):
        if piece["heading"]:
            heading = piece["heading"]
        elif piece["language"] == language:
            line = page.count("\n", 0, piece.start("text")) + 1
            found.append(Block(heading, language, textwrap.dedent(piece["text"]), line))
    return found


def headings() -> list[str]:
    """Every heading, in order."""
    return [piece["heading"] for piece in _PIECE.finditer(text()) if piece["heading"]]
