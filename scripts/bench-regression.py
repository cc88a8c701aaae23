#!/usr/bin/env python3
"""Compares the throughput of two builds on this machine, and fails if the second is slower than allowed.

    bench-regression.py BASE PROGRAM [--rounds 5] [--seconds 10] [--least 0.9] [--library FILE]

Both run `rerankd bench` in turn, so that a machine that slows down slows both. What counts is the median
over the rounds of the ratio within a round, for each workload.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

WORKLOADS = ("short", "passage", "mixed")


def pairs_per_second(program: Path, workload: str, seconds: int, library: Path) -> float:
    command = [program, "bench", "--workload", workload, "--duration", f"{seconds}s", "--target-ms", "0", "--json"]
    environment = {**os.environ, "ORT_DYLIB_PATH": str(library.resolve())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"`rerankd bench --workload {workload}` of {program} ended with code {done.returncode}")
    return float(json.loads(done.stdout)["steady"]["summary"]["pairs_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("program", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--least", type=float, default=0.9, help="smallest ratio of both that passes")
    parser.add_argument("--library", type=Path, default=Path("target/onnxruntime/libonnxruntime.so"))
    arguments = parser.parse_args()

    slower = []
    for workload in WORKLOADS:
        rounds = []
        for _ in range(arguments.rounds):
            before, after = (
                pairs_per_second(program, workload, arguments.seconds, arguments.library)
                for program in (arguments.base, arguments.program)
            )
            rounds.append(after / before)
            print(f"{workload}: {before:.1f} and {after:.1f} pairs/s, ratio {rounds[-1]:.3f}", flush=True)
        ratio = statistics.median(rounds)
        print(f"{workload}: median {ratio:.3f}; at least {arguments.least} is allowed")
        if ratio < arguments.least:
            slower.append(workload)
    if slower:
        sys.exit(f"slower: {', '.join(slower)}")


if __name__ == "__main__":
    main()
