"""The snippets of docs/clients.md, as they stand there."""

import re

import pytest
from conftest import DOCUMENTS, QUERY, ROOT
from llama_index.core.schema import NodeWithScore, TextNode

TEXT = (ROOT / "docs" / "clients.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet(url, expected, snippet):
    assert len(snippet.splitlines()) == 3
    assert "localhost:8080" in snippet
    names = {
        "query": QUERY,
        "documents": DOCUMENTS,
        "nodes": [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS],
    }
    address = url.removeprefix("http://")
    exec(snippet.replace("localhost:8080", address), names)
    assert names["best"] == expected[0][0]


def test_every_snippet_is_found():
    assert len(SNIPPETS) == TEXT.count("```python") >= 13
