"""The cache of models is the one of Python's libraries: each side reads what the other downloaded."""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest
from conftest import ROOT
from huggingface_hub import scan_cache_dir, snapshot_download
from instance import TARGET, binary

MODEL = "owner/tiny-bert"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFERENCE = ROOT / "tests" / "reference"
FOLDER = REFERENCE / "models" / "tiny-bert"
FILES = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
WEIGHTS = "model.safetensors"

# What somebody would write to use the model with no network, in a process that reads its environment anew.
OFFLINE = """
import json, sys
from huggingface_hub import constants
from transformers import AutoConfig, AutoTokenizer
assert constants.HF_HUB_OFFLINE
name, query, document = sys.argv[1:]
print(json.dumps({
    "layers": AutoConfig.from_pretrained(name).num_hidden_layers,
    "ids": AutoTokenizer.from_pretrained(name)(query, document)["input_ids"],
}))
"""


def git_blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as both sides ask for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body: bytes, headers: dict[str, str]):
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.split("?")[0]
        if path == f"/api/models/{MODEL}/revision/main":
            listing = {"id": MODEL, "sha": COMMIT, "siblings": [{"rfilename": name} for name in sorted(FILES)]}
            self.answer(json.dumps(listing).encode(), {"Content-Type": "application/json"})
            return
        if path == f"/api/models/{MODEL}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": git_blob(body)}
                for name, body in sorted(FILES.items())
            ]
            self.answer(json.dumps(tree).encode(), {"Content-Type": "application/json"})
            return
        name = path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/")
        if name not in FILES:
            self.send_error(404)
            return
        body = FILES[name]
        headers = {"X-Repo-Commit": COMMIT}
        if name == WEIGHTS:
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(body))
            headers["ETag"] = '"of-the-storage"'
        else:
            headers["ETag"] = f'"{git_blob(body)}"'
        self.answer(body, headers)

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def endpoint(hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def environment(home: pathlib.Path, hub) -> dict[str, str]:
    ours = ("RERANKD_", "HF_", "TRANSFORMERS_")
    given = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    library = str(TARGET / "onnxruntime" / "libonnxruntime.so")
    return {"ORT_DYLIB_PATH": library, **given, "HF_HOME": str(home), "HF_ENDPOINT": endpoint(hub)}


def rerankd(home: pathlib.Path, hub, *arguments: str) -> str:
    command = [binary(), *arguments]
    done = subprocess.run(command, env=environment(home, hub), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_python_finds_what_the_program_pulled(hub, tmp_path):
    pulled = rerankd(tmp_path, hub, "pull", MODEL)
    before = len(hub.asked)
    cache = tmp_path / "hub"
    assert snapshot_download(MODEL, cache_dir=cache, local_files_only=True) == pulled
    for name, content in FILES.items():
        assert (pathlib.Path(pulled) / name).read_bytes() == content
    (found,) = scan_cache_dir(cache).repos
    assert (found.repo_id, found.repo_type) == (MODEL, "model")
    (revision,) = found.revisions
    assert (revision.commit_hash, revision.refs) == (COMMIT, frozenset({"main"}))
    listed = json.loads(rerankd(tmp_path, hub, "models", "--json"))["models"][0]["snapshots"][0]
    assert listed["bytes"] == revision.size_on_disk == sum(map(len, FILES.values()))

    # transformers, by the name of the model and without a network.
    reference = json.loads((REFERENCE / "tiny-bert.json").read_text())
    number = next(i for i, pair in enumerate(reference["pairs"]) if all(isinstance(t, str) and t for t in pair))
    offline = {**environment(tmp_path, hub), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", OFFLINE, MODEL, *reference["pairs"][number]]
    done = subprocess.run(command, env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert read == {"layers": 3, "ids": reference["ids"][number]}
    assert len(hub.asked) == before

    # Asked again, the hub is asked about the files, and for none of them.
    assert snapshot_download(MODEL, cache_dir=cache, endpoint=endpoint(hub)) == pulled
    assert len(hub.asked) > before
    assert not [path for path in hub.asked[before:] if path.endswith(WEIGHTS)]


def test_the_program_runs_what_python_downloaded(hub, tmp_path):
    downloaded = snapshot_download(MODEL, cache_dir=tmp_path / "hub", endpoint=endpoint(hub))
    before = len(hub.asked)
    assert rerankd(tmp_path, hub, "pull", "--offline", MODEL) == downloaded
    reference = json.loads((REFERENCE / "tiny-bert.json").read_text())
    plain = [i for i, pair in enumerate(reference["pairs"]) if all(isinstance(text, str) for text in pair)]
    golden = {key: [reference[key][i] for i in plain] for key in ("pairs", "logits")}
    (tmp_path / "golden.json").write_text(json.dumps({**golden, "tolerance": 1e-4}))
    said = rerankd(tmp_path, hub, "verify", "--offline", "--model", MODEL, "--reference", str(tmp_path / "golden.json"))
    assert f"verified: `{MODEL}`" in said and f"of {len(plain)} pairs" in said and len(plain) > 50
    assert len(hub.asked) == before
    # Online it asks what `main` is, and for nothing else.
    assert rerankd(tmp_path, hub, "pull", MODEL) == downloaded
    assert hub.asked[before:] == [f"/api/models/{MODEL}/revision/main"]
