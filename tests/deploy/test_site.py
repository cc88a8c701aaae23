"""The site of the documentation: that it is made, and that every link in it leads somewhere."""

import html.parser
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from stack import ROOT, which


class Page(html.parser.HTMLParser):
    """The links of a page, and the places in it that a link can name."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.places |= {value for name, value in attributes if name in ("id", "name") and value}
        self.links |= {values[name] for name in ("href", "src") if values.get(name)}


def broken_links(site: Path) -> list[str]:
    """Links to files or places of the site that are not there."""
    # The print page is all pages in one, whose links lead out of their folders.
    paths = [path for path in site.rglob("*.html") if path.name not in ("print.html", "toc.html", "404.html")]
    pages = {path: Page(path) for path in paths}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("data:"):
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or (parts.fragment and target in pages and urllib.parse.unquote(parts.fragment) not in pages[target].places):
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, ROOT / "scripts/site.py", folder / "site", "--mdbook", which("mdbook")], check=True)
    return folder / "site/book"


def test_every_link_leads_somewhere(site):
    assert broken_links(site) == []


def test_a_link_to_nowhere_is_noticed(site, tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="here">x</h1><a href="b.html">x</a><a href="#there">x</a><a href="#here">x</a>')
    assert sorted(broken_links(tmp_path)) == ["a.html: #there", "a.html: b.html"]


def test_every_document_is_a_page(site):
    missing = [
        str(path.relative_to(ROOT))
        for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
        if not (site / path.relative_to(ROOT)).with_suffix(".html").is_file() and path.name != "README.md"
    ]
    assert missing == []


def test_the_reference_is_in_it(site):
    assert (site / "openapi.yaml").read_bytes() == (ROOT / "openapi.yaml").read_bytes()
    viewer = (site / "openapi/viewer.html").read_text()
    assert 'url: "../openapi.yaml"' in viewer and (site / "openapi/swagger-ui-bundle.js").stat().st_size > 1_000_000
