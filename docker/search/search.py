#!/usr/bin/env python3
"""A small search: PostgreSQL finds, rerankd orders.

    search.py load PATH      fills the database: a folder or file of Markdown, or a JSONL of id, title, text
    search.py serve          answers on LISTEN (default 127.0.0.1:8000)

PostgreSQL is found as libpq finds it (PGHOST, PGUSER, …); RERANK_URL names the reranker.
"""

import html
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg

CANDIDATES = 100
SHOWN = 10
RERANK_URL = os.environ.get("RERANK_URL", "http://127.0.0.1:8080")
# A search that waits longer than this for its order shows what it has, and says so.
RERANK_SECONDS = float(os.environ.get("RERANK_SECONDS", "10"))

SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    id text PRIMARY KEY,
    title text NOT NULL,
    body text NOT NULL,
    words tsvector NOT NULL GENERATED ALWAYS AS (
        setweight(to_tsvector('english', title), 'A') || setweight(to_tsvector('english', body), 'B')
    ) STORED
);
CREATE INDEX IF NOT EXISTS documents_words ON documents USING gin (words);
"""
# Any of the words, not all of them: the first stage must not miss what the second could put first.
# 1: a document's score is divided by the logarithm of its length.
RETRIEVE = """
SELECT id, title, body
FROM documents, (SELECT replace(plainto_tsquery('english', %s)::text, ' & ', ' | ')::tsquery AS any_word) AS query
WHERE words @@ any_word
ORDER BY ts_rank(words, any_word, 1) DESC, id
LIMIT %s
"""


@dataclass
class Document:
    id: str
    title: str
    body: str

    def text(self) -> str:
        """What is ranked. Many a body starts with its title; twice would only take room."""
        return self.body if self.body.startswith(self.title) else f"{self.title}. {self.body}"


def retrieve(database: psycopg.Connection, query: str, count: int = CANDIDATES) -> list[Document]:
    """The first stage: what shares words with the query, best first."""
    return [Document(*row) for row in database.execute(RETRIEVE, (query, count))]


def rerank(query: str, documents: list[Document], count: int = SHOWN) -> list[tuple[int, float]]:
    """The second stage: places in `documents` and scores, best first.

    Raises OSError when the reranker is not there, or does not take the request.
    """
    body = {"query": query, "documents": [document.text() for document in documents], "top_n": count}
    with urllib.request.urlopen(f"{RERANK_URL}/rerank", json.dumps(body).encode(), RERANK_SECONDS) as answer:
        results = json.load(answer)["results"]
    return [(result["index"], result["relevance_score"]) for result in results]


def sections(path: Path):
    """The sections of a Markdown file."""
    for number, section in enumerate(re.split(r"^#+ ", path.read_text(), flags=re.MULTILINE)):
        title, _, body = section.strip().partition("\n")
        if body.strip():
            yield Document(f"{path.name}#{number}", title, body.strip())


def documents(path: Path):
    if path.is_dir():
        for file in sorted([*path.glob("*.md"), *path.glob("docs.jsonl")]):
            yield from documents(file)
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            fields = json.loads(line)
            yield Document(fields["id"], fields.get("title", ""), fields["text"])
    else:
        yield from sections(path)


def load(database: psycopg.Connection, path: Path) -> int:
    """Replaces what the database holds; tells how many documents it has now."""
    database.execute(SCHEMA)
    database.execute("TRUNCATE documents")
    count = 0
    with database.cursor().copy("COPY documents (id, title, body) FROM STDIN") as rows:
        for document in documents(path):
            rows.write_row((document.id, document.title, document.body))
            count += 1
    database.execute("ANALYZE documents")
    database.commit()
    return count


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }}
form {{ display: flex; gap: .5rem; }}
input {{ flex: 1; min-width: 0; font: inherit; padding: .4rem .6rem; }}
button {{ font: inherit; padding: .4rem 1rem; }}
ol {{ padding-left: 1.5rem; }}
li {{ margin: 1rem 0; }}
h2 {{ font-size: 1rem; margin: 0; }}
p {{ margin: .2rem 0; }}
.note {{ opacity: .75; font-size: .85rem; }}
.warning {{ border-left: 4px solid #c60; padding-left: .6rem; }}
</style>
<h1>Search</h1>
<form role="search"><input name="q" value="{query}" aria-label="Search for" autofocus><button>Search</button></form>
{answer}
"""


def answer(database: psycopg.Connection, query: str) -> str:
    begun = time.monotonic()
    found = retrieve(database, query)
    retrieved = time.monotonic()
    if not found:
        return "<p>Nothing has any of these words.</p>"
    try:
        order = [(place, f"score {score:.4f}, place {place + 1} before") for place, score in rerank(query, found)]
        reranked = f"{len(found)} reranked in {(time.monotonic() - retrieved) * 1000:.0f} ms"
        note = f'<p class="note">{reranked}, found in {(retrieved - begun) * 1000:.0f} ms</p>'
    except OSError as error:
        # Said aloud: a search that quietly shows the first stage's order hides that it lost the second.
        print(f"not reranked: {error}", file=sys.stderr, flush=True)
        order = [(place, f"place {place + 1}") for place in range(min(SHOWN, len(found)))]
        note = f'<p class="warning" role="status">Not reranked: {html.escape(str(error))}</p>'
    items = []
    for place, why in order:
        body = found[place].body
        short = body if len(body) <= 300 else body[:300].rsplit(" ", 1)[0] + " …"
        items.append(
            f'<li><h2>{html.escape(found[place].title)}</h2><p>{html.escape(short)}</p><p class="note">{why}</p></li>'
        )
    return f"{note}<ol>{''.join(items)}</ol>"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        address = urllib.parse.urlsplit(self.path)
        if address.path != "/":
            return self.send_error(404)
        query = urllib.parse.parse_qs(address.query).get("q", [""])[0].strip()
        body = ""
        if query:
            with psycopg.connect() as database:
                body = answer(database, query)
        page = PAGE.format(title=html.escape(query or "Search"), query=html.escape(query), answer=body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, form, *values):
        """Nothing: the address of a request holds what somebody searched for."""


def main() -> None:
    match sys.argv[1:]:
        case ["load", path]:
            with psycopg.connect() as database:
                print(f"{load(database, Path(path))} documents")
        case ["serve"]:
            host, _, port = os.environ.get("LISTEN", "127.0.0.1:8000").rpartition(":")
            server = ThreadingHTTPServer((host, int(port)), Handler)
            print(f"http://{host}:{server.server_address[1]}", flush=True)
            server.serve_forever()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
