#!/usr/bin/env python3
"""Measures what the choice of an instance is worth: two of them behind HAProxy, requests of mixed sizes.

    balance.py [--seconds S] [--rounds N] [--load SHARE] [--policies P …] [--raw FILE]

Nine requests in ten have 8 short documents, one has 96. They arrive at random (Poisson) at SHARE of
what both instances can do, which is measured first; each policy meets the same arrivals. Latencies
count from when a request was due.
"""

import argparse
import concurrent.futures
import json
import pathlib
import random
import statistics
import tempfile
import time

from stack import DOCUMENTS, haproxy, rerank, servers

SMALL, LARGE = 8, 96
SHARE_LARGE = 0.1
POLICIES = ("roundrobin", "leastconn")


def documents(count: int, chance: random.Random) -> list[str]:
    # No two alike, or they would be computed once.
    return [f"{DOCUMENTS[place % len(DOCUMENTS)]} {chance.randrange(10**6)}" for place in range(count)]


def requests_per_second(url: str, chance: random.Random) -> float:
    """What one instance can do of the mix, one request after the other."""
    seconds = {}
    for count in (SMALL, LARGE):
        begun = time.monotonic()
        for _ in range(4):
            assert rerank(url, documents(count, chance))[0] == 200
        seconds[count] = (time.monotonic() - begun) / 4
    return 1 / ((1 - SHARE_LARGE) * seconds[SMALL] + SHARE_LARGE * seconds[LARGE])


def arrivals(rate: float, seconds: float, seed: int) -> list[tuple[float, list[str]]]:
    chance = random.Random(seed)
    due, planned = 0.0, []
    while (due := due + chance.expovariate(rate)) < seconds:
        count = LARGE if chance.random() < SHARE_LARGE else SMALL
        planned.append((due, documents(count, chance)))
    return planned


def run(url: str, planned: list[tuple[float, list[str]]]) -> dict[int, list[float]]:
    latencies: dict[int, list[float]] = {SMALL: [], LARGE: []}
    begun = time.monotonic()

    def ask(due: float, texts: list[str]) -> None:
        status, _ = rerank(url, texts)
        assert status == 200, status
        latencies[len(texts)].append(time.monotonic() - begun - due)

    with concurrent.futures.ThreadPoolExecutor(128) as pool:
        asked = []
        for due, texts in planned:
            time.sleep(max(0.0, begun + due - time.monotonic()))
            asked.append(pool.submit(ask, due, texts))
        for request in asked:
            request.result()
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--policies", nargs="+", default=POLICIES, help="`balance` of HAProxy")
    parser.add_argument("--raw", type=pathlib.Path, help="writes every latency, in seconds, as JSON")
    arguments = parser.parse_args()
    # Without a cache: every policy meets the same texts, and the second one would find them known.
    with servers(2, "--threads", "1", "--cache-size", "0") as instances:
        chance = random.Random(0)
        rate = arguments.load * sum(requests_per_second(instance.url, chance) for instance in instances)
        print(f"{rate:.1f} requests/s, {arguments.load:.0%} of what two instances do")
        measured = {policy: {SMALL: [], LARGE: []} for policy in arguments.policies}
        # Policies take turns, so that what else the machine does meets each of them.
        for seed in range(arguments.rounds):
            for policy in arguments.policies:
                with tempfile.TemporaryDirectory() as folder:
                    with haproxy(pathlib.Path(folder), instances, balance=policy) as proxy:
                        latencies = run(proxy.url, arrivals(rate, arguments.seconds, seed))
                for count, values in latencies.items():
                    measured[policy][count] += values
    if arguments.raw:
        rounded = {
            policy: {count: [round(value, 4) for value in values] for count, values in sizes.items()}
            for policy, sizes in measured.items()
        }
        arguments.raw.write_text(json.dumps({"requests_per_second": rate, "seconds": rounded}) + "\n")
    print("| policy | documents | requests | median | p95 | p99 |\n|---|---|---|---|---|---|")
    for policy, sizes in measured.items():
        for count, values in sizes.items():
            cuts = statistics.quantiles(values, n=100, method="inclusive")
            figures = " | ".join(f"{cuts[p - 1] * 1000:.0f} ms" for p in (50, 95, 99))
            print(f"| `{policy}` | {count} | {len(values)} | {figures} |")


if __name__ == "__main__":
    main()
