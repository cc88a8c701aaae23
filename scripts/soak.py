#!/usr/bin/env python3
"""Keeps a server at full load with requests of random lengths and sizes, and watches its memory.

    scripts/soak.py --minutes 30 [--clients 4] [--out FILE.csv] [--max-growth 1.05] -- target/release/rerankd serve …

Starts the command given behind `--` with a port of its own, sends it what many kinds of clients send
(1 to 200 documents of 1 to 600 words, some leaving before the answer), and writes the resident memory
once a second. The run is cut into parts of a third of its length, of ten minutes at most; it passes
when the largest resident memory of the last part is at most `--max-growth` times that of the second.
No text is sent twice, so the cache fills as it would in service.
"""

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

WORDS = (
    "flow wing boundary layer pressure heat model theory paper result shock wave surface body ratio "
    "number laminar turbulent supersonic method plate temperature velocity stream measured a of the in"
).split()


def text(rng, words):
    return " ".join(rng.choice(WORDS) + str(rng.randrange(1000)) * (rng.random() < 0.1) for _ in range(words))


def request(rng):
    kind = rng.random()
    if kind < 0.5:
        sizes = [rng.randint(1, 40) for _ in range(rng.randint(1, 32))]
    elif kind < 0.9:
        sizes = [min(600, int(rng.lognormvariate(4.8, 0.7)) + 1) for _ in range(rng.randint(1, 48))]
    else:
        sizes = [rng.randint(1, 600) for _ in range(rng.randint(48, 200))]
    return json.dumps({"query": text(rng, rng.randint(1, 20)), "documents": [text(rng, n) for n in sizes]})


def client(port, seed, until, counts, lock):
    rng = random.Random(seed)
    while time.monotonic() < until:
        # One in fifty does not wait for its answer.
        patience = 0.2 if rng.random() < 0.02 else 600
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
        try:
            connection.request("POST", "/rerank", request(rng), {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            outcome = str(response.status)
        except (TimeoutError, socket.timeout):
            outcome = "left"
        except OSError as error:
            outcome = type(error).__name__
        finally:
            connection.close()
        with lock:
            counts[outcome] = counts.get(outcome, 0) + 1


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("no resident memory")


def ready(port, process):
    while process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit(f"the server ended with {process.returncode}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out")
    parser.add_argument("--max-growth", type=float, default=1.05)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*options.command, "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    out = open(options.out, "w", encoding="ascii") if options.out else None
    counts, samples, lock = {}, [], threading.Lock()
    try:
        ready(port, process)
        seconds = options.minutes * 60
        start = time.monotonic()
        threads = [
            threading.Thread(target=client, args=(port, options.seed + i, start + seconds, counts, lock))
            for i in range(options.clients)
        ]
        for thread in threads:
            thread.start()
        if out:
            out.write("seconds,resident_bytes\n")
        while (now := time.monotonic() - start) < seconds:
            samples.append((now, resident(process.pid)))
            if out:
                out.write(f"{now:.1f},{samples[-1][1]}\n")
                out.flush()
            time.sleep(1)
        for thread in threads:
            thread.join()
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        if out:
            out.close()

    part = min(600, seconds / 3)
    second = max(size for at, size in samples if part <= at < 2 * part)
    last = max(size for at, size in samples if at >= seconds - part)
    growth = last / second
    mebi = 1024 * 1024
    print(f"answers: {json.dumps(counts, sort_keys=True)}; exit code {code}")
    print(
        f"resident: {samples[0][1] / mebi:.0f} MiB at first, at most {max(s for _, s in samples) / mebi:.0f} MiB; "
        f"second part {second / mebi:.0f} MiB, last part {last / mebi:.0f} MiB, growth {growth:.3f}"
    )
    bad = [status for status in counts if status not in ("200", "429", "left")]
    if growth > options.max_growth or bad or code != 0:
        sys.exit(f"failed: growth {growth:.3f} (at most {options.max_growth}), unexpected answers {bad}")


if __name__ == "__main__":
    main()
