"""Requests that schemathesis makes up from openapi.yaml: whatever they hold, the answer is described."""

import collections
import json
import pathlib
import subprocess
import sys
import urllib.request

from conftest import ROOT, started

# A deadline that is made up has passed before anything is scored.
NOT_MADE_UP = "x-request-timeout-ms"
# Of the requests with a body; a description that few bodies satisfy would prove little.
LEAST_ANSWERED = 0.3


def test_answers_are_as_described(tmp_path):
    server = started()
    url = server.url
    report = tmp_path / "report.ndjson"
    schemathesis = pathlib.Path(sys.executable).with_name("schemathesis")
    here = pathlib.Path(__file__).parent
    command = [schemathesis, "--config-file", here / "schemathesis.toml", "run"]
    command += [tmp_path / "openapi.json", "--url", url, "--report-ndjson-path", report]
    try:
        (tmp_path / "openapi.json").write_text(json.dumps(described(url)))
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    finally:
        server.end()
    (ROOT / "target" / "schemathesis.log").write_text(run.stdout + run.stderr)
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]
    statuses = collections.Counter(posted(report))
    answered = statuses[200] / statuses.total()
    print(f"{statuses.total()} requests with a body, {answered:.0%} answered: {dict(statuses)}")
    assert answered >= LEAST_ANSWERED, statuses
    assert not any(status >= 500 for status in statuses), statuses


def described(url):
    """What the server says of itself, but for the header that is not made up."""
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        document = json.load(answer)
    for path in document["paths"].values():
        for operation in path.values():
            parameters = operation.get("parameters", [])
            parameters[:] = [one for one in parameters if one["name"] != NOT_MADE_UP]
    return document


def posted(report):
    """The status of every POST."""
    for line in report.read_text().splitlines():
        event = json.loads(line)
        for interaction in interactions(event):
            if interaction["request"]["method"] == "POST" and interaction.get("response"):
                yield interaction["response"]["status_code"]


def interactions(value):
    """Every pair of request and response, wherever it is."""
    if isinstance(value, dict):
        if isinstance(value.get("request"), dict) and "response" in value:
            yield value
        else:
            for inner in value.values():
                yield from interactions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from interactions(inner)
