"""What the checks of a deployment start: servers, HAProxy in front of them, Prometheus beside them.

Nothing has a fixed port. A server's port is held by a socket that is bound and does not listen, so
that a server that stops and starts again finds it free.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = os.environ.get("RERANKD_BIN", str(TARGET / "debug" / "rerankd"))
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
QUERY = "A man is eating food."
DOCUMENTS = [
    "A monkey is playing the drums.",
    "Somebody eats a meal.",
    "The girl is carrying a baby.",
]
BEST = 1


def which(tool: str) -> str | None:
    """Where `tool` is; system folders count, whatever PATH says."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


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


def rerank(url: str, documents: list[str], timeout: float = 60, headers: dict[str, str] | None = None) -> tuple[int, dict]:
    """Status and body of one request on a connection of its own; status 0 where the connection broke."""
    body = json.dumps({"query": QUERY, "documents": documents}).encode()
    request = urllib.request.Request(f"{url}/rerank", body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code, {}
    except (OSError, ValueError):
        return 0, {}


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

    def start(self) -> None:
        library = TARGET / "onnxruntime" / "libonnxruntime.so"
        # The server refuses variables of its prefix that are no settings.
        given = {name: value for name, value in os.environ.items() if name != "RERANKD_BIN"}
        self.process = subprocess.Popen(
            [BINARY, "serve", "--listen", self.address, *self.flags],
            env={"ORT_DYLIB_PATH": str(library), "RERANKD_LOG_LEVEL": "warn", **given},
        )

    def wait_ready(self) -> None:
        wait_until(lambda: get(f"{self.url}/ready")[0] == 200, 120, f"{self.url}/ready")

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

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.held.close()


@contextlib.contextmanager
def servers(count: int, *flags: str):
    """Instances that are ready."""
    instances = [Server(*flags) for _ in range(count)]
    try:
        for instance in instances:
            instance.start()
        for instance in instances:
            instance.wait_ready()
        yield instances
    finally:
        for instance in instances:
            instance.close()


HAPROXY = """
global
    maxconn 1000
    stats socket {stats} mode 600 level admin
defaults
    mode http
    timeout connect 5s
    timeout client 120s
    timeout server 120s
    timeout check 5s
    # A request that was sent to an instance is that instance's: nothing here hides a failure.
    retries 0
    no option redispatch
frontend search
    bind fd@{listener}
    default_backend rerankd
backend rerankd
    balance {balance}
    option httpchk
    http-check send meth GET uri /ready
    http-check expect status 200
    default-server check inter {interval} fall 1 rise 1
{servers}
"""


class Haproxy:
    def __init__(self, folder: pathlib.Path, instances: list[Server], interval: str, balance: str):
        self.stats = str(folder / "haproxy.sock")
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        os.set_inheritable(listener.fileno(), True)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = folder / "haproxy.cfg"
        lines = [f"    server s{n} {instance.address}" for n, instance in enumerate(instances)]
        config.write_text(
            HAPROXY.format(
                stats=self.stats,
                listener=listener.fileno(),
                balance=balance,
                interval=interval,
                servers="\n".join(lines),
            )
        )
        self.process = subprocess.Popen(
            [which("haproxy"), "-db", "-q", "-f", str(config)], close_fds=False
        )
        listener.close()
        wait_until(lambda: set(self.states()) == {"UP"}, 60, "HAProxy to see every instance")

    def states(self) -> list[str]:
        """`UP`, `DOWN` and the like, an instance each; none before HAProxy answers."""
        try:
            with socket.socket(socket.AF_UNIX) as stats:
                stats.settimeout(5)
                stats.connect(self.stats)
                stats.sendall(b"show stat -1 4 -1\n")
                text = b"".join(iter(lambda: stats.recv(65536), b"")).decode()
        except OSError:
            return []
        rows = [line.split(",") for line in text.splitlines() if line.startswith("rerankd,s")]
        return [row[17] for row in rows]

    def state(self, place: int) -> str:
        """That of one instance; empty where HAProxy did not answer in time."""
        states = self.states()
        return states[place] if place < len(states) else ""

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def haproxy(folder: pathlib.Path, instances: list[Server], interval: str = "200ms", balance: str = "leastconn"):
    proxy = Haproxy(folder, instances, interval, balance)
    try:
        yield proxy
    finally:
        proxy.close()


class Prometheus:
    """Prometheus itself, with the alerts and one job that is scraped every second."""

    def __init__(self, folder: pathlib.Path, addresses: list[str]):
        place = Server()
        self.held, self.url = place.held, place.url
        config = folder / "prometheus.yaml"
        job = {"job_name": "rerankd", "static_configs": [{"targets": addresses}]}
        rules = [str(MONITORING / "rules.yaml")]
        settings = {"global": {"scrape_interval": "1s"}, "rule_files": rules, "scrape_configs": [job]}
        config.write_text(yaml.safe_dump(settings))
        self.process = subprocess.Popen(
            [
                *(which("prometheus"), f"--config.file={config}", f"--web.listen-address={place.address}"),
                *(f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"),
            ]
        )
        wait_until(lambda: get(f"{self.url}/-/ready")[0] == 200, 60, "Prometheus")

    def ask(self, path: str, **parameters: str) -> list:
        question = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{question}", timeout=30) as answer:
            return json.load(answer)["data"]["result"]

    def query(self, expression: str) -> list:
        return self.ask("query", query=expression)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.held.close()


def expressions(panel: dict, rate_interval: str) -> list[tuple[str, str]]:
    """What a panel of the dashboard asks Prometheus, and how it names what it gets."""
    values = {"$__rate_interval": rate_interval, "$job": ".*", "$instance": ".*"}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "constant":
            values[f"${variable['name']}"] = variable["query"]
    found = []
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in values.items():
            expression = expression.replace(name, value)
        assert "$" not in expression, expression
        found.append((expression, target["legendFormat"]))
    return found
