"""The README as data: its fenced blocks, and the heading and fold that each stands under."""

import re
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).parents[1] / "README.md"
_PIECE = re.compile(
    r"^## (?P<section>[^\n]+)$"
    r"|<summary>(?P<fold>[^\n]+)</summary>"
    r"|^(?P<unfold></details>)$"
    r"|^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    section: str
    fold: str
    language: str
    text: str


def blocks() -> list[Block]:
    """Every fenced block, in order; `fold` is the summary of its `<details>`, or empty."""
    found, section, fold = [], "", ""
    for piece in _PIECE.finditer(README.read_text(encoding="utf-8")):
        if piece["text"] is not None:
            found.append(Block(section, fold, piece["language"], piece["text"]))
        elif piece["section"]:
            section, fold = piece["section"], ""
        else:
            fold = piece["fold"] or ""
    return found


def find(section: str, language: str, containing: str = "", *, fold: str = "") -> str:
    """Find the text of the one block that fits; `fold` is how its summary begins."""
    [text] = [
        block.text
        for block in blocks()
        if (block.section, block.language) == (section, language)
        and bool(block.fold) == bool(fold)
        and block.fold.startswith(fold)
        and containing in block.text
    ]
    return text
