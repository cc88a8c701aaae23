"""What a registry would get: every crate, none too large, and nothing that a build of it would miss."""

import re
import subprocess
import tarfile
import tomllib

import pytest
from conftest import ROOT

MOST_BYTES = 10 << 20
CRATES = ["rerankd", *(f"rerankd-{path.name}" for path in sorted((ROOT / "crates").iterdir()))]


@pytest.fixture(scope="module")
def crates(tmp_path_factory) -> dict:
    """The names and contents of the files of each package."""
    folder = tmp_path_factory.mktemp("target")
    # What is compiled is not asked here; `make package` builds each of them.
    command = ["cargo", "package", "--workspace", "--locked", "--no-verify", "--allow-dirty", "--target-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = {}
    for path in (folder / "package").glob("*.crate"):
        assert path.stat().st_size < MOST_BYTES, path.name
        with tarfile.open(path) as archive:
            files = {entry.name.split("/", 1)[1]: archive.extractfile(entry).read() for entry in archive if entry.isfile()}
        found[tomllib.loads(files["Cargo.toml"].decode())["package"]["name"]] = files
    return found


def test_every_crate_is_packed(crates):
    assert sorted(crates) == sorted(CRATES)
    for name, files in crates.items():
        assert files["LICENSE"] == (ROOT / "LICENSE").read_bytes(), name


def test_no_model_is_packed(crates):
    for files in crates.values():
        assert not [path for path in files if path.endswith((".safetensors", ".onnx"))]


def test_included_files_are_packed(crates):
    """Those whose names are literals; the model's own are left out, and the build script knows that."""
    for name, files in crates.items():
        for path, content in files.items():
            if not path.endswith(".rs") or path == "src/embedded.rs":
                continue
            for included in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', content.decode()):
                place = (ROOT / path).parent.joinpath(included).resolve().relative_to(ROOT)
                assert str(place) in files, f"{name}: {path} includes {included}"
            for case in re.findall(r'\bexample!\("([^"]+)"\)', content.decode()):
                assert f"compat/{case}.json" in files, f"{name}: {path}"
