"""Clients for Node.js, where it is installed. `make clients` installs them as `node/package-lock.json` pins them."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest
from conftest import DOCUMENTS, QUERY, TARGET, TOO_MANY, check

MODULES = TARGET / "clients-node" / "node_modules"
SCRIPT = pathlib.Path(__file__).with_name("node") / "rank.cjs"

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not MODULES.is_dir(),
    reason="Node.js or its clients are not installed; with npm, `make clients` installs the clients",
)


def ask(client: str, url: str, documents: list[str], top: int | None = None) -> dict:
    request = {"client": client, "url": url, "query": QUERY, "documents": documents, "top": top}
    if top is None:
        del request["top"]
    done = subprocess.run(
        ["node", str(SCRIPT)],
        input=json.dumps(request),
        env={**os.environ, "NODE_PATH": str(MODULES)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("client", ["cohere-ai", "cohere-ai-v1", "voyageai", "ai-sdk"])
def test_node(url, expected, client):
    check(expected, ask(client, url, DOCUMENTS)["ranking"])
    assert len(ask(client, url, DOCUMENTS, top=2)["ranking"]) == 2
    refused = ask(client, url, TOO_MANY)
    assert refused["status"] == 400 and "the limit is 8" in refused["error"]
