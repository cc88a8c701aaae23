"""The real server, started for tests in Python.

A server's port is held by a socket that is bound and does not listen, so that nobody else is given
it, and a server that stops and starts again finds it free.
"""

import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def binary() -> str:
    return os.environ.get("RERANKD_BIN", str(TARGET / "debug" / "rerankd"))


def wait_until(holds, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


def get(url: str, timeout: float = 5) -> tuple[int, str]:
    """Status and body; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def free_port() -> int:
    """A port that was free, for a program of others that is given a number."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class Server:
    """One instance, on a port that stays its own."""

    def __init__(self, *flags: str):
        self.flags = flags
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.held.getsockname()[1]}"
        self.url = f"http://{self.address}"
        self.process: subprocess.Popen | None = None

    def start(self, **settings: str) -> None:
        library = TARGET / "onnxruntime" / "libonnxruntime.so"
        # The server refuses variables of its prefix that are no settings.
        given = {name: value for name, value in os.environ.items() if name != "RERANKD_BIN"}
        self.process = subprocess.Popen(
            [binary(), "serve", "--listen", self.address, *self.flags],
            env={"ORT_DYLIB_PATH": str(library), "RERANKD_LOG_LEVEL": "warn", **given, **settings},
        )

    def wait_ready(self) -> None:
        def answers() -> bool:
            ended = self.process.poll()
            if ended is not None:
                raise RuntimeError(f"the server ended with {ended}")
            return get(f"{self.url}/ready")[0] == 200

        wait_until(answers, 120, f"{self.url}/ready")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_stopped(self) -> int:
        return self.process.wait(120)

    def metric(self, line: str) -> float:
        """The value of a metric, named with its labels as `/metrics` writes them; 0 where there is none yet."""
        for found in get(f"{self.url}/metrics")[1].splitlines():
            if found.startswith(f"{line} "):
                return float(found.rsplit(" ", 1)[1])
        return 0.0

    def end(self) -> None:
        """Stops it as an operator would; that it does not end cleanly is a failure."""
        self.stop()
        try:
            assert self.wait_stopped() == 0
        finally:
            self.close()

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.held.close()


def started(*flags: str, **settings: str) -> Server:
    """A server that is ready."""
    server = Server(*flags)
    server.start(**settings)
    try:
        server.wait_ready()
    except BaseException:
        server.close()
        raise
    return server
