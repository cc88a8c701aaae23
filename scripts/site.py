#!/usr/bin/env python3
"""Makes a site of the Markdown files of this repository, and of openapi.yaml.

    site.py FOLDER [--mdbook PROGRAM]

The pages are the files themselves, in the same folders, so that their links hold. Their order is PARTS
below; names of chapters are the first headings. FOLDER gets the site in `book/`.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import urllib.parse
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Chapters by part; a pattern takes all that match, in order.
PARTS = {
    "Using it": [
        "docs/installing.md",
        "docs/api.md",
        "docs/clients.md",
        "docs/models.md",
        "models/minilm-l6-rank/README.md",
        "docs/offline.md",
        "examples/ray/README.md",
    ],
    "Running it": ["docs/configuration.md", "docs/operating.md", "docs/security.md", "SECURITY.md"],
    "Performance": ["docs/performance.md", "docs/bench/README.md", "docs/bench/[!R]*.md"],
    "Development": [
        "ARCHITECTURE.md",
        "docs/decisions/README.md",
        "docs/decisions/[0-9]*.md",
        "CONTRIBUTING.md",
        "CODE_OF_CONDUCT.md",
        "docs/versioning.md",
        "docs/roadmap.md",
        "CHANGELOG.md",
        "tests/reference/README.md",
        "training/README.md",
    ],
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
REFERENCE = "openapi/README.md"
REFERENCE_PAGE = """\
# API reference

[Open the reference](viewer.html) of all paths and fields, or take it as [openapi.yaml](../openapi.yaml). A
server has the same document at `/openapi.json`, and shows it at `/docs`.
"""
BOOK = """\
[book]
title = "rerankd"
language = "en"
src = "src"

[output.html]
no-section-label = true
"""
VIEWER = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>API reference of rerankd</title>
<link rel="stylesheet" href="swagger-ui.css">
<div id="reference"></div>
<script src="swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "../openapi.yaml", dom_id: "#reference", supportedSubmitMethods: []});</script>
</html>
"""


def chapters() -> dict[str, list[Path]]:
    """Paths of the files by part; the first part has no name."""
    listed = {"": [Path("README.md")]}
    for part, patterns in PARTS.items():
        paths = [sorted(ROOT.glob(pattern)) for pattern in patterns]
        assert all(paths), f"{part}: a pattern matches no file"
        listed[part] = [path.relative_to(ROOT) for found in paths for path in found]
    return listed


def heading(path: Path) -> str:
    text = (ROOT / path).read_text()
    return re.search(r"^# (.*)$", text, re.MULTILINE)[1].replace("[", "").replace("]", "")


def summary(listed: dict[str, list[Path]]) -> str:
    lines = ["# Summary", ""]
    for part, paths in listed.items():
        lines += ["", f"# {part}", ""] if part else []
        for path in paths:
            nested = path.parent.name in ("bench", "decisions") and path.name != "README.md"
            lines.append(f"{'    ' * nested}- [{heading(path)}]({path})")
            if path.name == "api.md":
                lines.append(f"    - [API reference]({REFERENCE})")
    return "\n".join(lines) + "\n"


def linked_files(path: Path) -> set[Path]:
    """Files of the repository that a page links to or shows."""
    targets = {urllib.parse.unquote(target.split("#")[0]) for target in LINK.findall((ROOT / path).read_text())}
    found = {(ROOT / path.parent / target).resolve() for target in targets if target and "://" not in target}
    return {target.relative_to(ROOT) for target in found if target.is_file()}


def viewer(folder: Path) -> None:
    """Swagger UI, as the server's own build has it."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    (package,) = (package for package in metadata["packages"] if package["name"] == "utoipa-swagger-ui-vendored")
    (archive,) = (Path(package["manifest_path"]).parent / "res").glob("*.zip")
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as files:
        for name in files.namelist():
            if re.search(r"^[^/]+/dist/(swagger-ui\.css|swagger-ui-bundle\.js)$", name):
                (folder / Path(name).name).write_bytes(files.read(name))
    (folder / "viewer.html").write_text(VIEWER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mdbook", default="mdbook")
    arguments = parser.parse_args()

    shutil.rmtree(arguments.folder, ignore_errors=True)
    source = arguments.folder / "src"
    listed = chapters()
    pages = {path for paths in listed.values() for path in paths}
    for path in pages.union(*map(linked_files, pages)):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        if path in pages:
            # A README becomes the index of its folder, and links to it have to follow.
            text = re.sub(r"(\]\((?![a-z]+:)[^)\s]*)README\.md", r"\1index.md", (ROOT / path).read_text())
            (source / path).write_text(text)
        else:
            shutil.copy(ROOT / path, source / path)
    (source / REFERENCE).parent.mkdir()
    (source / REFERENCE).write_text(REFERENCE_PAGE)
    viewer((source / REFERENCE).parent)
    (source / "SUMMARY.md").write_text(summary(listed))
    (arguments.folder / "book.toml").write_text(BOOK)
    subprocess.run([arguments.mdbook, "build", arguments.folder], check=True)


if __name__ == "__main__":
    main()
