#!/usr/bin/env python3
"""Prints what CHANGELOG.md says of the version that a tag names.

    release-notes.py v1.2.3

Fails unless the workspace has that version and the changelog a dated section for it.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def notes(changelog: str, version: str) -> str:
    """The section of `version`, without its heading."""
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}\n"
    match = re.search(heading + r"(.*?)(?=^## \[|^\[[^\]]+\]: |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if match is None or not match[1].strip():
        sys.exit(f"CHANGELOG.md has no section `## [{version}] - DATE`; hint: rename `## [Unreleased]`")
    return match[1].strip() + "\n"


def main() -> None:
    tag = sys.argv[1]
    version = tag.removeprefix("v")
    own = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    if tag != f"v{own}":
        sys.exit(f"the tag is `{tag}` and the version in Cargo.toml {own}; hint: the tag should be `v{own}`")
    print(notes((ROOT / "CHANGELOG.md").read_text(), version), end="")


if __name__ == "__main__":
    main()
