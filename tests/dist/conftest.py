"""The packages, made once for all tests of what is in them, of the debug build."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from instance import ROOT, TARGET, binary  # noqa: E402


def packed(folder: Path, program: Path) -> Path:
    library = TARGET / "onnxruntime"
    command = [sys.executable, ROOT / "scripts/dist.py", folder, "--binary", program, "--onnxruntime", library]
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
