"""Checks rerankd on a GPU, the most important first; `check.sh` unpacks and starts it.

Every step has a time limit of its own, so that one that hangs does not cost the others. What a step finds is in
report.json, and for reading in report.md; both are written anew after every step.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "rerankd"
TESTS = HERE / "cuda-tests"
MODEL = HERE / "models" / "minilm-l6-rank"
BENCH = HERE / "benches" / "cuda.py"
SHAPES = HERE / "shapes"
PASSED, FAILED, NO_GPU, USAGE = 0, 1, 2, 3
# Lines of a failed step that are reported.
LAST_LINES = 40
# pairs/s of rerankd over those of torch, on the workload `mixed`.
LEAST_RATIO = 2.0


class StepError(Exception):
    """Why a step failed."""


@dataclass
class Step:
    """A step and what came of it."""

    name: str
    outcome: str = "not run"
    seconds: float = 0.0
    reason: str = ""
    figures: dict = field(default_factory=dict)
    output: str = ""


def library_folders() -> list[str]:
    """Folders of the CUDA libraries that come with torch: `nvidia/*/lib` beside it."""
    folders = {Path(folder) for folder in sys.path if "packages" in folder}
    return sorted(str(lib) for folder in folders for lib in folder.glob("nvidia/*/lib"))


def environment(**more: str) -> dict[str, str]:
    own = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return {
        # The program refuses variables of its prefix that are no settings.
        **{name: value for name, value in os.environ.items() if not name.startswith("RERANKD_")},
        "LD_LIBRARY_PATH": ":".join(filter(None, own + library_folders())),
        "ORT_DYLIB_PATH": str(HERE / "onnxruntime" / "libonnxruntime.so"),
        **more,
    }


def run(command: list, seconds: float, step: Step, **more: str) -> str:
    """What `command` writes. It and all that it started have ended afterwards."""
    process = subprocess.Popen(
        [str(part) for part in command], cwd=HERE, env=environment(**more), text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        failure = f"`{Path(command[0]).name}` ended with code {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        failure = f"more than {seconds:.0f} seconds"
    step.output += output
    if failure:
        raise StepError(failure)
    return output


def last_report(step: Step) -> dict:
    """What `rerankd bench --json` found; it is also printed by one that fails."""
    found = reports(step)
    return found[-1] if found else {}


def reports(step: Step) -> list[dict]:
    """The lines of JSON in a step's output. The time limit may have cut off the last one."""
    found = []
    for line in step.output.splitlines():
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return found


def tests(step: Step, seconds: float, *names: str, **more: str) -> None:
    """Runs those tests of the test program whose names contain one of `names`."""
    try:
        run([TESTS, *names, "--nocapture", "--test-threads", "1"], seconds, step, RERANKD_TEST_ROOT=str(HERE), **more)
    finally:
        results = re.findall(r"^test (\S+) \.\.\.", step.output, re.MULTILINE)
        # What the tests print of errors and correlations.
        step.figures = {"tests": results, "measured": re.findall(r"^.*\boff by .*$", step.output, re.MULTILINE)}
    if not results:
        raise StepError(f"the test program has no tests named {', '.join(names)}")


# The steps on a GPU


def parity(step: Step, seconds: float) -> None:
    tests(step, seconds, "cuda::", RERANKD_TEST_CUDA="1")


@contextlib.contextmanager
def server(step: Step, *flags: str):
    """A server's address and process; what it writes is the step's output."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
    command = [str(PROGRAM), "serve", "--listen", address, "--model", str(MODEL), *flags]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            yield f"http://{address}", process
        finally:
            process.kill()
            process.wait()
            log.seek(0)
            step.output += log.read()


def answer(url: str, body: dict | None = None, seconds: float = 10) -> dict:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=seconds) as response:
        return json.load(response)


def serves(step: Step, seconds: float) -> None:
    """The server answers, and says that all of its nodes are on the GPU."""
    deadline = time.monotonic() + seconds
    with server(step, "--device", "cuda", "--precision", "auto") as (url, process):
        while True:
            try:
                answer(f"{url}/ready")
                break
            except OSError:
                if process.poll() is not None:
                    raise StepError(f"the server ended with code {process.returncode}") from None
                if time.monotonic() > deadline:
                    raise StepError(f"the server is not ready after {seconds:.0f} seconds") from None
                time.sleep(0.1)
        info = answer(f"{url}/info")
        step.figures = {name: info[name] for name in ("device", "precision", "providers")}
        documents = ["A monkey is playing the drums.", "Somebody eats a meal."]
        found = answer(f"{url}/rerank", {"query": "A man is eating food.", "documents": documents})
        step.figures["response"] = found
    if set(info["providers"]) != {"CUDAExecutionProvider"}:
        raise StepError(f"nodes by provider are {info['providers']}")


def throughput(shape: str, workloads: str) -> Callable[[Step, float], None]:
    def measure(step: Step, seconds: float) -> None:
        command = [sys.executable, BENCH, "--rerankd", PROGRAM, "--folder", SHAPES, "--shape", shape]
        try:
            output = run([*command, "--workloads", workloads, "--seconds", "3"], seconds, step)
        finally:
            step.figures["measured"] = reports(step)
        ratios = {line["workload"]: line["ratio"] for line in step.figures["measured"] if "ratio" in line}
        if not ratios:
            raise StepError("nothing was measured: " + output[-200:])
        if ratios.get("mixed", LEAST_RATIO) < LEAST_RATIO:
            raise StepError(f"{ratios['mixed']:.2f} times torch on mixed; at least {LEAST_RATIO} is wanted")

    return measure


def memory(step: Step, seconds: float) -> None:
    """Batches that do not fit are split: torch takes the memory once the model is loaded."""
    command = [sys.executable, BENCH, "--rerankd", PROGRAM, "--folder", SHAPES, "--shape", "12x768", "--squeeze"]
    run([*command, "--seconds", "10"], seconds, step)
    step.figures = last_report(step)
    if set(step.figures["statuses"]) != {"200"}:
        raise StepError(f"answers by status are {step.figures['statuses']}")


def overload(step: Step, seconds: float) -> None:
    flags = ["--overload", "--json", "--duration", "20s", "--workload", "mixed"]
    engine = ["--model", MODEL, "--device", "cuda", "--precision", "fp16", "--cache-size", "0"]
    try:
        run([PROGRAM, "bench", *flags, "--", *engine], seconds, step)
    finally:
        step.figures = last_report(step)


def batch_sizes(step: Step, seconds: float) -> None:
    """Pairs a second by the size of a batch: whether the default suits this GPU."""
    for tokens in (8192, 16384, 32768, 65536):
        flags = ["--bare", "--json", "--duration", "2s", "--warm-up", "1s", "--target-ms", "0", "--clients", "64"]
        engine = ["--model", MODEL, "--device", "cuda", "--precision", "fp16", "--cuda-batch-tokens", str(tokens)]
        run([PROGRAM, "bench", *flags, "--", *engine], seconds / 4, step)
        step.figures[str(tokens)] = last_report(step)["bare"]["summary"]["pairs_per_second"]


# The steps of a rehearsal without a GPU


def message(step: Step, seconds: float) -> None:
    """The program says what is missing."""
    with contextlib.suppress(StepError):
        run([PROGRAM, "bench", "--bare", "--", "--model", MODEL, "--device", "cuda"], seconds, step)
        raise AssertionError("it ran on CUDA although there is no GPU")
    if "`--device cuda:0` cannot be used" not in step.output:
        raise StepError("the program does not say that there is no GPU")


def graphs(step: Step, seconds: float) -> None:
    """The graphs for CUDA, operator by operator on the processor."""
    tests(step, seconds, "cuda_graph::it_gives", "cuda_graph::onnx_runtime", "cuda::")


# Name, seconds, what it does. Ten minutes at most.
ON_GPU = [
    ("serves", 35, serves),
    ("parity", 100, parity),
    ("throughput 6x768", 85, throughput("6x768", "mixed,short,passage,long")),
    ("throughput 24x1024", 70, throughput("24x1024", "mixed")),
    ("throughput 6x384", 35, throughput("6x384", "mixed")),
    ("throughput 12x768", 40, throughput("12x768", "mixed")),
    ("memory", 40, memory),
    ("overload", 50, overload),
    ("batch sizes", 30, batch_sizes),
    ("throughput qwen3", 35, throughput("qwen3", "mixed")),
    ("throughput deberta", 35, throughput("deberta", "mixed")),
    ("throughput modernbert", 45, throughput("modernbert", "mixed")),
]
WITHOUT_GPU = [("message", 60, message), ("graphs", 300, graphs)]


def gpu() -> tuple[dict, str]:
    """The GPU and what drives it, or why none can be used."""
    try:
        import torch
    except ImportError as error:
        return {}, f"torch cannot be imported: {error}"
    facts = {"torch": torch.__version__}
    if not torch.cuda.is_available():
        return facts, "torch finds no GPU"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        facts["nvidia-smi"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    return facts | {"gpu": torch.cuda.get_device_name()}, ""


class Report:
    def __init__(self, folder: Path):
        self.folder = folder
        self.steps: list[Step] = []
        self.facts = {"commit": (HERE / "commit").read_text().strip(), "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = self.facts | {"steps": [asdict(step) for step in self.steps]}
        (self.folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
        lines = ["# rerankd on a GPU", ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += ["", "| step | outcome | seconds | |", "|---|---|---|---|"]
        lines += [f"| {s.name} | {s.outcome} | {s.seconds:.0f} | {s.reason} |" for s in self.steps]
        for step in self.steps:
            if step.figures:
                lines += ["", f"## {step.name}", "", "```json", json.dumps(step.figures, indent=1), "```"]
            if step.outcome == "failed":
                lines += ["", f"The end of what {step.name} wrote:", "", "```"]
                lines += step.output.splitlines()[-LAST_LINES:] + ["```"]
        (self.folder / "report.md").write_text("\n".join(lines) + "\n")

    def take(self, name: str, seconds: float, work: Callable[[Step, float], None]) -> None:
        step = Step(name)
        start = time.monotonic()
        try:
            work(step, seconds)
            step.outcome = "passed"
        # Whatever goes wrong in a step is its result, and the next one runs.
        except Exception as error:
            step.outcome, step.reason = "failed", str(error) or type(error).__name__
        step.seconds = time.monotonic() - start
        self.steps.append(step)
        self.write()
        print(f"{step.outcome}: {name} ({step.seconds:.0f} s) {step.reason}", flush=True)


class Parser(argparse.ArgumentParser):
    """Ends with a code of its own: argparse's is that of a machine without a GPU."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"check.py: {message}\n")


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, default=Path("report"), help="folder for report.md and report.json")
    parser.add_argument("--only", default="", help="names of steps, separated by commas")
    arguments = parser.parse_args()
    report = Report(arguments.report.resolve())
    facts, missing = gpu()
    report.facts |= facts | ({"no GPU": missing} if missing else {})
    report.write()
    steps = WITHOUT_GPU if missing else ON_GPU
    only = set(filter(None, arguments.only.split(",")))
    if unknown := only - {name for name, *_ in steps}:
        names = ", ".join(name for name, *_ in steps)
        parser.error(f"no step is called {', '.join(sorted(unknown))}; there are {names}")
    for step in steps:
        if not only or step[0] in only:
            report.take(*step)
    print(f"the report is in {report.folder}", flush=True)
    if missing:
        print(f"NOT CHECKED: {missing}", flush=True)
        return NO_GPU
    return FAILED if any(step.outcome == "failed" for step in report.steps) else PASSED


if __name__ == "__main__":
    sys.exit(main())
