#!/usr/bin/env python3
"""Runs what is built for aarch64 under emulation, on processors with and without each set of instructions.

    test-aarch64.py [--native PROGRAM] [--only PART]

The tests of the kernels; some scores of every small model against those of sentence-transformers; and the server over
HTTP, whose scores are compared with those of PROGRAM, the server of this machine: `target/debug/rerankd` by default.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aarch64

# Processors that QEMU emulates, and the instruction set that is chosen on each.
CORES = {
    "cortex-a72": "neon",
    "neoverse-n1": "neon-dotprod",
    "neoverse-v1": "neon-i8mm",
}
PROGRAM = f"/repository/target/aarch64/build/{aarch64.TARGET}/debug/rerankd"
# Small models whose int8 is compared too: plain attention, rotation, disentangled attention, a decoder.
INT8_MODELS = ("tiny-bert", "tiny-modernbert", "tiny-deberta-v3", "class-qwen2")
REFERENCES = aarch64.REPOSITORY / "tests" / "reference"
EXCERPTS = aarch64.FOLDER / "reference"
# Characters of a pair that is short, of one that is long, and of one that every small model cuts off.
SHORT, LONG, CUT_OFF = range(400), range(1000, 1500), range(3000, 4000)
# Short pairs of a model: emulation scores about one a second.
PAIRS = 24
# Of a request that is under way while the server is asked to stop.
DRAINED_PAIRS = 8
SCORE_TOLERANCE = 1e-4
LEAST_CORRELATION = 0.999
READY_SECONDS = 300


def check(what: str, holds: bool, found: object) -> None:
    print(f"{'ok' if holds else 'FAILED'}: {what}: {found}", flush=True)
    if not holds:
        sys.exit(1)


def emulated(core: str, *command: str) -> list[str]:
    return aarch64.inside("qemu-aarch64", "-cpu", core, *command)


def kernel_tests() -> str:
    """Builds the tests of the kernels, and tells where the program lies in the root."""
    build = ("cargo", "test", "--locked", "-p", "rerankd-kernels", "--lib", "--no-run")
    command = aarch64.inside(*build, "--message-format=json")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("the tests do not build for aarch64")
    messages = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    (program,) = [message["executable"] for message in messages if message.get("executable")]
    return program


def run_tests(core: str, program: str) -> None:
    begun = time.monotonic()
    print(f"\n== {core}: tests of the kernels", flush=True)
    done = subprocess.run(emulated(core, program))
    check(f"{core}: tests pass", done.returncode == 0, f"{time.monotonic() - begun:.0f} s")


def parity(core: str, model: str) -> None:
    """A small model gives the logits of sentence-transformers in fp32."""
    begun = time.monotonic()
    excerpt = EXCERPTS / f"{model}.json"
    excerpt.write_text(json.dumps(excerpt_of(model)))
    files = ("--model", in_root(REFERENCES / "models" / model), "--reference", in_root(excerpt))
    command = emulated(core, PROGRAM, "verify", "--threads", "1", *files)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("{")]
    found = "; ".join([*lines[-2:], f"{time.monotonic() - begun:.0f} s"])
    check(f"{core}: {model}", done.returncode == 0, found)


def in_root(path: Path) -> str:
    """The name in the root of a file of the repository."""
    return str("/repository" / path.relative_to(aarch64.REPOSITORY))


def excerpt_of(model: str) -> dict[str, list]:
    """Some short pairs of a model's reference, a long one and one that is cut off, with their logits."""
    reference = json.loads((REFERENCES / f"{model}.json").read_text())
    texts = [list(map(expand, pair)) for pair in reference["pairs"]]
    pairs = list(zip(texts, reference["logits"], strict=True))
    short, long, cut_off = (
        [each for each in pairs if sum(map(len, each[0])) in lengths] for lengths in (SHORT, LONG, CUT_OFF)
    )
    chosen = [*some(short), *long[:1], *cut_off[:1]]
    return {"pairs": [pair for pair, _ in chosen], "logits": [logits for _, logits in chosen]}


@dataclass
class Server:
    process: subprocess.Popen
    address: str
    instructions: str

    def stop(self) -> None:
        # The emulator replaced the commands that started it.
        self.process.send_signal(signal.SIGTERM)

    def post(self, path: str, body: object) -> object:
        request = urllib.request.Request(
            f"http://{self.address}{path}", json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def scores(self, pairs: list[list[str]], raw: bool = False) -> list[float]:
        return self.post("/predict", {"pairs": pairs, "raw_scores": raw})["scores"]

    def queued_tokens(self) -> float:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith("rerankd_queue_tokens ")).split()[1])


@contextmanager
def serve(command: list[str], precision: str, *more: str, **environment: str):
    # Every session tries the model before the first request, which is most of the time of a slow machine.
    settings = ("--listen", "127.0.0.1:0", "--threads", "1", "--drain-timeout", f"{READY_SECONDS}s")
    arguments = ("serve", *settings, "--precision", precision, *more)
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    late = threading.Timer(READY_SECONDS, process.kill)
    late.start()
    try:
        address, last = None, "it wrote nothing"
        for line in process.stdout:
            event = json.loads(line) if line.startswith("{") else {"message": line.strip()}
            address = event.get("listen", address)
            if event["message"] == "ready":
                break
            last = line
        else:
            sys.exit(f"the server did not become ready: {last}")
        late.cancel()
        # What it logs from here on is read, so that it never waits for a reader.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Server(process, address, event["instructions"])
    finally:
        late.cancel()
        process.kill()
        process.wait()


def expand(text: str | dict) -> str:
    """A long text stands as a repetition."""
    return text if isinstance(text, str) else text["repeat"][0] * text["repeat"][1]


def some(pairs: list) -> list:
    return pairs[:: max(1, len(pairs) // PAIRS)][:PAIRS]


def judged_pairs() -> list[list[str]]:
    """The shortest of the judged file."""
    lines = (REFERENCES / "quality.tsv").read_text().splitlines()
    return [line.split("\t") for line in sorted(lines, key=len)[:PAIRS]]


def ranks(numbers: list[float]) -> list[int]:
    order = sorted(range(len(numbers)), key=lambda index: numbers[index])
    places = [0] * len(numbers)
    for place, index in enumerate(order):
        places[index] = place
    return places


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, of numbers without ties."""
    squares = sum((x - y) ** 2 for x, y in zip(ranks(a), ranks(b)))
    return 1 - 6 * squares / (len(a) * (len(a) ** 2 - 1))


def compare(native: str, core: str, precision: str, model: str = "") -> None:
    """The scores of an emulated server with those of this machine's, of the built-in model or a small one."""
    if model:
        pairs = excerpt_of(model)["pairs"]
        own, foreign = (("--model", f"{root}/tests/reference/models/{model}") for root in (aarch64.REPOSITORY, "/repository"))
    else:
        pairs, own, foreign = judged_pairs(), (), ()
    library = os.environ.get("ORT_DYLIB_PATH") or str(aarch64.REPOSITORY / "target/onnxruntime/libonnxruntime.so")
    with serve([native], precision, *own, ORT_DYLIB_PATH=library) as server:
        expected, expected_raw = server.scores(pairs), server.scores(pairs, raw=True)
        other = server.instructions
    with serve(emulated(core, PROGRAM), precision, *foreign) as server:
        name = f"{core}, {model or 'the built-in model'}, {precision}"
        check(f"{name}: the set of instructions", server.instructions == CORES[core], server.instructions)
        scores, raw = server.scores(pairs), server.scores(pairs, raw=True)
        worst = max(abs(a - b) for a, b in zip(scores, expected))
        worst_raw = max(abs(a - b) for a, b in zip(raw, expected_raw))
        same = sum(a == b for a, b in zip(raw, expected_raw))
        correlation = rank_correlation(raw, expected_raw)
        found = f"scores {worst:.1e} off, logits {worst_raw:.1e}, {same} of {len(pairs)} the same, rank correlation {correlation:.5f}"
        holds = correlation >= LEAST_CORRELATION and (precision == "int8" or worst <= SCORE_TOLERANCE)
        check(f"{name}, beside {other}", holds, found)
        if model:
            return
        order = server.post(
            "/rerank",
            {
                "query": "A man is eating food.",
                "documents": ["A monkey plays the drums.", "Somebody eats a meal."],
            },
        )["results"]
        check(f"{name}: /rerank answers", [r["index"] for r in order] == [1, 0], order)
        drain(name, server, pairs)


def drain(name: str, server: Server, pairs: list[list[str]]) -> None:
    """A request that was accepted is answered after the signal to stop."""
    answers = []
    # Others than those before, whose scores the server remembers.
    asked = [[f"{query} again", text] for query, text in pairs[:DRAINED_PAIRS]]
    asking = threading.Thread(target=lambda: answers.append(server.scores(asked)))
    asking.start()
    while server.queued_tokens() == 0 and asking.is_alive():
        pass
    check(f"{name}: a request is under way", not answers, "")
    server.stop()
    asking.join()
    code = server.process.wait()
    answered = sum(map(len, answers))
    check(f"{name}: the accepted request is answered", answered == len(asked), answered)
    check(f"{name}: stops cleanly", code == 0, f"exit code {code}")


def refusals() -> None:
    """Exit codes of a server that does not start."""
    for arguments, code in (
        (("serve", "--max-documents", "0"), 2),
        (("serve", "--model", "/nowhere"), 3),
    ):
        command = emulated("neoverse-n1", PROGRAM, *arguments)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=READY_SECONDS)
        check(f"`{' '.join(arguments)}` exits with {code}", done.returncode == code, done.returncode)


def at_once(*tasks: Callable[[], None]) -> None:
    """Runs tasks of one thread each on two cores; the first that fails ends the program."""
    with ThreadPoolExecutor(2) as pool:
        try:
            for done in as_completed([pool.submit(task) for task in tasks]):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--native", default=str(aarch64.REPOSITORY / "target/debug/rerankd"))
    parser.add_argument("--only", choices=["kernels", "models", "server"], help="one of the three parts")
    arguments = parser.parse_args()
    if lacking := aarch64.missing():
        sys.exit(f"NOT RUN: needs {lacking}; hint: `apt-get install debootstrap`")
    aarch64.set_up()
    parts = [arguments.only] if arguments.only else ["kernels", "models", "server"]
    if "kernels" in parts:
        program = kernel_tests()
        for core in CORES:
            run_tests(core, program)
    build = ("cargo", "build", "--locked", "--bin", "rerankd")
    if parts != ["kernels"]:
        subprocess.run(aarch64.inside(*build), check=True)
    if "models" in parts:
        EXCERPTS.mkdir(exist_ok=True)
        folders = [path.name for path in sorted((REFERENCES / "models").iterdir()) if path.is_dir()]
        models = [name for name in folders if name.startswith(("tiny-", "class-"))]
        print(f"\n== {len(models)} small models, {PAIRS} short pairs of each, a long one and one that is cut off")
        print(f"left out: other pairs; int8 of all but {', '.join(INT8_MODELS)}; and, because `verify`")
        print(f"reads no references of prompts: {', '.join(sorted({*folders} - {*models}))}", flush=True)
        at_once(
            *(partial(parity, "neoverse-n1", model) for model in models),
            *(partial(compare, arguments.native, "neoverse-v1", "int8", model) for model in INT8_MODELS),
        )
    if "server" in parts:
        print("\n== the server", flush=True)
        builtin = partial(compare, arguments.native)
        at_once(
            partial(builtin, "neoverse-n1", "fp32"),
            partial(builtin, "neoverse-n1", "int8"),
            partial(builtin, "neoverse-v1", "int8"),
            refusals,
        )
    print("aarch64: what was built is what runs, within its tolerances")


if __name__ == "__main__":
    main()
