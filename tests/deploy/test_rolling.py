"""Behind HAProxy: instances that are restarted one after the other under load, and clients that leave."""

import collections
import contextlib
import http.client
import json
import threading

import pytest
from stack import BEST, DOCUMENTS, QUERY, get, haproxy, rerank, servers, wait_until, which

pytestmark = pytest.mark.skipif(
    which("haproxy") is None, reason="NOT RUN: haproxy is not installed (apt-get install haproxy)"
)
CLIENTS = 4
# HAProxy notices within a second, or later where the machine is busy; the grace goes on after that.
NOTICED, GRACE = 8, "15s"


class Load:
    """Clients that ask without a pause, each request on a connection of its own."""

    def __init__(self, url: str):
        self.url = url
        self.answers = collections.Counter()
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.clients = [threading.Thread(target=self.ask, args=(n,)) for n in range(CLIENTS)]

    def ask(self, client: int) -> None:
        # One client sends requests that take longer, so that some are always in flight.
        documents = DOCUMENTS * (20 if client == 0 else 1)
        while not self.stopping.is_set():
            status, answer = rerank(self.url, documents)
            right = status == 200 and answer["results"][0]["index"] == BEST
            with self.lock:
                self.answers["right" if right else f"wrong, status {status}"] += 1

    def answered(self) -> int:
        with self.lock:
            return self.answers.total()

    def wait_for_more(self, count: int) -> None:
        target = self.answered() + count
        wait_until(lambda: self.answered() >= target, 120, f"{count} more answers")


@contextlib.contextmanager
def load(url: str):
    running = Load(url)
    for client in running.clients:
        client.start()
    try:
        yield running
    finally:
        running.stopping.set()
        for client in running.clients:
            client.join(180)


def test_no_request_fails(tmp_path):
    with servers(2, "--threads", "1", "--grace", GRACE) as instances, haproxy(tmp_path, instances) as proxy:
        with load(proxy.url) as requests:
            requests.wait_for_more(50)
            for place, instance in enumerate(instances):
                instance.stop()
                wait_until(lambda: proxy.state(place).startswith("DOWN"), NOTICED, "HAProxy to notice")
                # It still serves: only new requests go elsewhere.
                assert get(f"{instance.url}/live")[0] == 200
                assert get(f"{instance.url}/ready")[0] == 503
                assert instance.wait_stopped() == 0
                requests.wait_for_more(50)
                instance.start()
                wait_until(lambda: proxy.state(place) == "UP", 120, "HAProxy to use it again")
                requests.wait_for_more(50)
            served = [instance.metric('rerankd_requests_total{route="/rerank",status="200"}') for instance in instances]
    assert list(requests.answers) == ["right"], requests.answers
    # Both were in use again at the end.
    assert min(served) > 0


def test_without_grace_requests_fail(tmp_path):
    """The same without grace: between the stop and the next check, requests go to a closed port."""
    with servers(2, "--threads", "1") as instances, haproxy(tmp_path, instances, "5s") as proxy, load(proxy.url) as requests:
        requests.wait_for_more(50)
        # Right after a check the next one is furthest away.
        checks = lambda: instances[0].metric('rerankd_requests_total{route="/ready",status="200"}')
        seen = checks()
        wait_until(lambda: checks() > seen, 60, "a check")
        assert list(requests.answers) == ["right"], requests.answers
        instances[0].stop()
        assert instances[0].wait_stopped() == 0
        failed = lambda: requests.answers.total() > requests.answers["right"]
        wait_until(failed, 4, "a request to fail")


def test_a_client_that_leaves_takes_its_work_with_it(tmp_path):
    with servers(1, "--threads", "1") as (instance,), haproxy(tmp_path, [instance]) as proxy:
        documents = [f"{number} {'A man eats pasta. ' * 100}" for number in range(900)]
        client = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=60)
        client.request("POST", "/rerank", json.dumps({"query": QUERY, "documents": documents}))
        queued = lambda: instance.metric("rerankd_queue_tokens")
        wait_until(lambda: queued() > 0, 60, "the request to be queued")
        client.close()
        left = 'rerankd_requests_total{route="/rerank",status="499"}'
        wait_until(lambda: instance.metric(left) == 1 and queued() == 0, 60, "its work to be given up")
        # All of it are some 360,000 tokens.
        assert instance.metric("rerankd_wasted_tokens_total") < 100_000
