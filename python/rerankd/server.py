"""A server of its own, for notebooks and tests."""

import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rerankd.client import Client, Error, Result

POLL_SECONDS = 0.05
# What of the log an error shows.
LOG_LINES = 20
# Proxies of the environment are for other machines than this.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """Starts `rerankd serve` on a free port of this machine, and stops it at the end of the `with` block.

    Settings are those of the server, by name: `Server(model="/path", precision="int8", threads=2)`. Entering
    waits until the model is loaded, for at most `start_timeout` seconds, and raises `Error` with the end of
    the log if the server does not start. A model from a hub may have to be downloaded first.
    """

    def __init__(self, *, start_timeout: float = 600, **settings: str | int | bool | os.PathLike[str]):
        self._start_timeout = start_timeout
        self._settings = {f"RERANKD_{name.upper()}": as_text(value) for name, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        program = find_program()
        # Bound and not listening, it keeps the port from others until the server has it.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{self._held.getsockname()[1]}"
        self.url = f"http://{address}"
        self._log = tempfile.TemporaryFile()
        environment = {**os.environ, **self._settings, "RERANKD_LISTEN": address}
        try:
            self._process = subprocess.Popen(
                [program, "serve"], env=environment, stdin=subprocess.DEVNULL, stderr=self._log
            )
            self._wait_ready()
        except BaseException:
            self._end()
            raise
        self._client = Client(self.url, opener=DIRECT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, model: str | None = None
    ) -> list[Result]:
        """As `Client.rerank`."""
        return self._client.rerank(query, documents, top_n=top_n, model=model)

    def predict(
        self, pairs: Sequence[tuple[str, str]], *, model: str | None = None
    ) -> list[float] | list[list[float]]:
        """As `Client.predict`."""
        return self._client.predict(pairs, model=model)

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout
        while not answers(f"{self.url}/ready"):
            if self._process.poll() is not None:
                raise Error(f"rerankd ended with exit code {self._process.returncode}:\n{self._last_lines()}")
            if time.monotonic() > deadline:
                raise Error(f"rerankd is not ready after {self._start_timeout} s:\n{self._last_lines()}")
            time.sleep(POLL_SECONDS)

    def _last_lines(self) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-LOG_LINES:])

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._held.close()
        self._log.close()


def as_text(value: str | int | bool | os.PathLike[str]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def find_program() -> str:
    """The program of this installation, else the one on the PATH."""
    installed = Path(sysconfig.get_path("scripts"), "rerankd")
    program = str(installed) if installed.exists() else shutil.which("rerankd")
    if program is None:
        raise Error("`rerankd` is not on the PATH; hint: `pip install` its wheel for this platform")
    return program


def answers(url: str) -> bool:
    try:
        with DIRECT.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
