"""Proves the example: a cluster of two nodes, one worker killed on the way, and every score as one process has it.

    python proof.py --program ../../target/release/rerankd
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from score import scored

# What packing and threads may change: the order in which numbers are added.
TOLERANCE = 1e-5
# Words of the made-up texts.
WORDS = "the a model of wing flow at high speed boundary layer heat is was not dog runs man plays".split()


def rows(count):
    """Pairs of 3 to 60 words, always the same."""
    draw = random.Random(5)
    text = lambda longest: " ".join(draw.choices(WORDS, k=draw.randint(3, longest)))
    return [{"id": i, "query": text(12), "document": f"{text(60)} {i}"} for i in range(count)]


def by_one_process(program, model, data, folder):
    given, found = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
    given.write_text("".join(json.dumps(row) + "\n" for row in data))
    command = [program, "score", "--input", given, "--output", found]
    if model is not None:
        command += ["--model", model]
    subprocess.run(command, check=True)
    return {row["id"]: row["score"] for row in map(json.loads, found.read_text().splitlines())}


def servers(program):
    """Every server that a worker has started."""
    processes = psutil.process_iter(["cmdline"])
    return [p for p in processes if (p.info["cmdline"] or [])[:4] == [program, "serve", "--listen", "127.0.0.1:0"]]


def pairs_taken(server):
    """How many pairs a server has been sent, as it counts them itself."""
    try:
        ports = [c.laddr.port for c in server.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/metrics", timeout=5).read().decode()
    except (psutil.Error, OSError, IndexError):
        return 0
    counts = [line.split()[1] for line in metrics.splitlines() if line.startswith("rerankd_pairs_total ")]
    return float(counts[0]) if counts else 0


class Killer(threading.Thread):
    """Kills one worker, as a lost machine would: while two work, and in the middle of its share."""

    def __init__(self, program, after):
        super().__init__(daemon=True)
        self.program, self.after = program, after
        self.killed = None

    def run(self):
        while self.killed is None:
            time.sleep(0.02)
            found = servers(self.program)
            if len(found) < 2:
                continue
            busy = [server for server in found if pairs_taken(server) >= self.after]
            if busy:
                worker = busy[0].parent()
                os.kill(worker.pid, signal.SIGKILL)
                self.killed = worker.pid
                # The kernel ends the server with it.
                busy[0].wait(timeout=10)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--model")
    parser.add_argument("--rows", type=int, default=3000)
    options = parser.parse_args()
    options.program = str(Path(options.program).resolve())
    options.workers, options.threads, options.batch = 2, 1, 100

    data = rows(options.rows)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        alone = by_one_process(options.program, options.model, data, folder)
        print(f"one process: {len(alone)} rows in {time.monotonic() - started:.1f} s")

        # Two nodes; on each there is room for one worker, and a bit for reading.
        cluster = Cluster()
        for _ in range(2):
            cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
        ray.init(address=cluster.address, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        started = time.monotonic()
        found = []
        killer = Killer(options.program, after=options.rows // 10)
        killer.start()
        spread = ray.data.from_items(data, override_num_blocks=30)
        for row in scored(spread, options).iter_rows():
            found.append(row)
        seconds = time.monotonic() - started
        ray.shutdown()
        cluster.shutdown()

    workers = {row["worker"] for row in found}
    together = {row["id"]: row["score"] for row in found}
    print(f"cluster: {len(found)} rows in {seconds:.1f} s by {len(workers)} workers")
    print(f"killed on the way: worker {killer.killed}")
    problems = []
    if killer.killed is None:
        problems.append("no worker was killed")
    if len(workers) < 2:
        problems.append("only one worker did anything")
    if len(found) != len(data):
        problems.append(f"{len(found)} rows came of {len(data)}")
    if together.keys() != alone.keys():
        problems.append("rows are lost, or came twice")
    worst = max(abs(together[i] - alone[i]) for i in together.keys() & alone.keys())
    same = sum(together[i] == alone[i] for i in together.keys() & alone.keys())
    print(f"scores: at most {worst:.1e} apart, {same} the same to the last bit")
    if worst > TOLERANCE:
        problems.append(f"a score is {worst} off")
    if servers(options.program):
        problems.append("a server outlived its worker")
    for problem in problems:
        print(f"NOT PROVEN: {problem}", file=sys.stderr)
    if not problems:
        print("proven: nothing lost, nothing twice, the same scores")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
