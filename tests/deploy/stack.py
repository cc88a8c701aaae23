"""What the checks of a deployment start: servers, HAProxy in front of them, Prometheus beside them.

Nothing has a fixed port.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import yaml

# Shared with the other tests in Python.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
from instance import ROOT, TARGET, Server, binary, free_port, get, wait_until  # noqa: E402, F401

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
    """Where `tool` is; this environment's and system folders count, whatever PATH says."""
    return shutil.which(tool, path=f"{sys.prefix}/bin:{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


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
    # A client that leaves takes its work with it.
    option abortonclose
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
