"""The packages for aarch64 that `make dist MACHINE=aarch64` left in target/dist, under emulation where they were compiled."""

import io
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from conftest import ROOT, only, serving
from elftools.elf.elffile import ELFFile

sys.path.insert(0, str(ROOT / "scripts"))
import aarch64  # noqa: E402

DIST = ROOT / "target/dist"
pytestmark = pytest.mark.skipif(
    platform.machine() == "aarch64" or not list(DIST.glob("rerankd-*_aarch64.whl")) or bool(aarch64.missing()),
    reason="NOT RUN: needs root and packages by `make dist MACHINE=aarch64`",
)


def unpacked_wheel(folder):
    with zipfile.ZipFile(only(DIST, "rerankd-*_aarch64.whl")) as archive:
        archive.extractall(folder)
    # Where pip puts a wheel's scripts and data.
    data = only(folder, "rerankd-*.data")
    (data / "scripts").rename(data / "data/bin")
    (data / "data/bin/rerankd").chmod(0o755)
    return (data / "data").rename(folder / "prefix")


def unpacked_debian(folder):
    subprocess.run(["dpkg-deb", "--extract", only(DIST, "rerankd_*_arm64.deb"), folder], check=True)
    return folder / "usr"


def unpacked_tarball(folder):
    with tarfile.open(only(DIST, "rerankd-*-linux-aarch64.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    return only(folder, "rerankd-*")


def test_it_serves(tmp_path):
    # In the root where the emulator is.
    folder = aarch64.ROOT / "tmp/wheel"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wheel = unpacked_wheel(folder)
    others = [unpack(tmp_path / unpack.__name__) for unpack in (unpacked_debian, unpacked_tarball)]
    program, library = "bin/rerankd", f"lib/rerankd/{only(wheel / 'lib/rerankd', 'libonnxruntime.so.*').name}"
    for path in (program, library):
        content = (wheel / path).read_bytes()
        assert ELFFile(io.BytesIO(content)).get_machine_arch() == "AArch64", path
        assert all((other / path).read_bytes() == content for other in others), path
    # A small model, as emulated products take minutes for the built-in one.
    model = "/repository/tests/reference/models/tiny-bert"
    started = ("env", "-u", "ORT_DYLIB_PATH", "qemu-aarch64", f"/tmp/wheel/{wheel.name}/{program}", "serve", "--model", model)
    with serving(*aarch64.inside(*started)):
        pass
    shutil.rmtree(folder)


def test_what_the_packages_say_of_themselves():
    wheel = only(DIST, "rerankd-*_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        (about,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
    (tag,) = re.findall(r"^Tag: (.*)$", about, re.MULTILINE)
    assert wheel.name.endswith(f"-{tag}.whl")
    done = subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'"{tag.rsplit("-", 1)[1]}"' in done.stdout, done.stdout
    package = only(DIST, "rerankd_*_arm64.deb")
    assert subprocess.check_output(["dpkg-deb", "--field", package, "Architecture"], text=True).strip() == "arm64"
    assert "libonnxruntime" in subprocess.check_output(["dpkg-deb", "--contents", package], text=True)
