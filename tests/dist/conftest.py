"""The packages, made once for all tests of what is in them, of the debug build."""

import contextlib
import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from instance import ROOT, TARGET, Server, binary, get, wait_until  # noqa: E402


def packed(folder: Path, program: Path, *options: str | Path) -> Path:
    library = TARGET / "onnxruntime"
    command = [sys.executable, ROOT / "scripts/dist.py", folder, "--binary", program, "--onnxruntime", library, *options]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> Path:
    """The debug build without what only a debugger reads, which is most of it."""
    stripped = tmp_path_factory.mktemp("program") / "rerankd"
    if not shutil.which("strip"):
        pytest.skip("NOT RUN: strip is not installed (apt-get install binutils)")
    subprocess.run(["strip", "-o", stripped, binary()], check=True)
    return stripped


@pytest.fixture(scope="session")
def packages(tmp_path_factory, program) -> Path:
    return packed(tmp_path_factory.mktemp("dist"), program)


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@contextlib.contextmanager
def serving(*command: str | Path, **options):
    """Runs `command` with a free port for `--listen`, asks it to rank, and gives its process; it has to end cleanly."""
    place = Server()
    process = subprocess.Popen([*command, "--listen", place.address], **options)
    try:
        wait_until(lambda: process.poll() is not None or get(f"{place.url}/ready")[0] == 200, 120, "the server")
        body = {"query": "A man is eating food.", "documents": ["A monkey plays the drums.", "A man eats pasta."]}
        request = urllib.request.Request(f"{place.url}/rerank", json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            assert [result["index"] for result in json.load(answer)["results"]] == [1, 0]
        yield process
    finally:
        process.terminate()
        code = process.wait(60)
        place.close()
    assert code == 0
