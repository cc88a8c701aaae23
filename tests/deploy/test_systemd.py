"""The units of config/, against systemd's own tools."""

import re
import socket
import subprocess

import pytest
from stack import ROOT, TARGET, binary, wait_until, which

CONFIG = ROOT / "config"
UNITS = ("rerankd.service", "rerankd.socket")
OPERATING = (ROOT / "docs" / "operating.md").read_text()


def needs(tool: str):
    return pytest.mark.skipif(which(tool) is None, reason=f"NOT RUN: {tool} is not installed (apt-get install systemd)")


@pytest.fixture
def units(tmp_path):
    """The units with the program that was built, which is not where they expect it."""
    for name in UNITS:
        text = (CONFIG / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/rerankd/bin/rerankd", binary()))
    return [str(tmp_path / name) for name in UNITS]


def analyze(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([which("systemd-analyze"), *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@needs("systemd-analyze")
def test_units_are_what_systemd_reads(units, tmp_path):
    assert analyze("verify", *units) == (0, "")
    wrong = tmp_path / "rerankd.service"
    wrong.write_text(wrong.read_text().replace("RestartSec=", "RestartSecs="))
    assert "RestartSecs" in analyze("verify", str(wrong))[1]


@needs("systemd-analyze")
def test_the_service_has_few_rights(units):
    # In tenths: below 2 is what systemd calls OK, without anything that is exposed.
    code, said = analyze("security", "--offline=yes", "--threshold=20", units[0])
    assert code == 0, said


def test_the_papers_install_what_the_unit_names():
    service = (CONFIG / "rerankd.service").read_text()
    named = set(re.findall(r"/(?:opt|etc)/rerankd/[\w./]+", OPERATING))
    started = re.search(r"^ExecStart=(\S+) serve --config (\S+)$", service, re.MULTILINE)
    assert set(started.groups()) <= named
    # What must not be tried again is what the papers say so of.
    given_up = re.search(r"^RestartPreventExitStatus=(.*)$", service, re.MULTILINE)[1].split()
    told = re.findall(r"^\| (\d+) \|[^|]+\| do not restart", OPERATING, re.MULTILINE)
    assert given_up == told


@needs("systemd-socket-activate")
def test_a_socket_of_systemd_is_served(tmp_path):
    path = tmp_path / "rerankd.sock"
    library = TARGET / "onnxruntime" / "libonnxruntime.so"
    settings = [f"--setenv=ORT_DYLIB_PATH={library}", "--setenv=RERANKD_LOG_LEVEL=warn"]
    activate = [which("systemd-socket-activate"), f"--listen={path}", *settings, binary(), "serve"]
    process = subprocess.Popen(activate)
    try:
        wait_until(path.exists, 60, "the socket")

        def status() -> int:
            try:
                with socket.socket(socket.AF_UNIX) as stream:
                    stream.settimeout(60)
                    stream.connect(str(path))
                    stream.sendall(b"GET /ready HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
                    return int(stream.makefile("rb").readline().split()[1])
            except (OSError, IndexError):
                return 0

        # The first request starts the program, and waits in the socket meanwhile.
        wait_until(lambda: status() == 200, 120, "the server behind the socket")
        process.terminate()
        assert process.wait(60) == 0
        # What it was passed is not its own to remove.
        assert path.exists()
    finally:
        process.kill()
        process.wait()
