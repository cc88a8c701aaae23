"""What can be tested of CUDA without a GPU.

The bundle for a GPU and its check: the layout, the report and the exit codes. Programs and libraries are stand-ins;
what the check runs on a real GPU is in scripts/gpu/check.py.

The graphs: ONNX Runtime's real CUDA provider runs them on CUDA libraries that compute nothing (standin.c), which
shows that it has a kernel for every node, which one it takes, and that nothing is refused.
"""

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from stack import ROOT, TARGET, binary, which

GPU = ROOT / "scripts" / "gpu"
OPERATING = (ROOT / "docs" / "operating.md").read_text()
CODE = b"machine code"
# A torch that finds one.
GPU_FOUND = "__version__ = '0'\nclass cuda:\n    is_available = lambda: True\n    get_device_name = lambda: 'a GPU'\n"


def module(name: str):
    spec = importlib.util.spec_from_file_location(name, GPU / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


bundle, check = module("bundle"), module("check")


def container(*architectures: int) -> bytes:
    """A container of GPU code with an entry for each architecture."""
    entries = b""
    for architecture in architectures:
        entry = struct.pack("<HHIQ", 2, 0x101, 64, len(CODE)) + bytes(12) + struct.pack("<I", architecture)
        entries += entry.ljust(64, b"\0") + CODE
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def test_only_the_code_of_one_architecture_is_kept():
    code = bytearray(b"before" + container(80, 90) + b"between" + container(75) + b"after")
    size = len(code)
    assert bundle.keep_only(90, code) == len(CODE)
    assert (len(code), code.count(CODE)) == (size, 1)
    assert code.startswith(b"before") and b"between" in code and code.endswith(b"after")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A bundle of stand-ins."""
    folder = tmp_path_factory.mktemp("bundle")
    libraries = folder / "libraries"
    libraries.mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime_providers_shared.so"):
        (libraries / name).write_bytes(b"library")
    (libraries / bundle.PROVIDER).write_bytes(container(80, 90))
    programs = ["--program", shutil.which("true"), "--tests", shutil.which("true")]
    command = [sys.executable, GPU / "bundle.py", folder / "out", "--onnxruntime", libraries, *programs, "--preset", "0"]
    subprocess.run(command, check=True)
    return folder / "out"


def test_a_gpu_without_code_is_refused(parts):
    command = [sys.executable, GPU / "bundle.py", parts, "--onnxruntime", parts.parent / "libraries", "--arch", "61"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "no code for GPUs of architecture 61" in done.stderr


class Machine:
    """A machine that the bundle was brought to, from which the repository cannot be seen."""

    def __init__(self, parts: Path, folder: Path):
        self.bundle, self.unpacked = folder / "bundle", folder / "unpacked"
        shutil.copytree(parts, self.bundle)
        self.environment = {"PATH": os.environ["PATH"], "CHECK_FOLDER": str(self.unpacked), "PYTHON": sys.executable}

    def check(self, *flags: str) -> subprocess.CompletedProcess:
        command = ["sh", self.bundle / "check.sh", *flags]
        return subprocess.run(command, cwd=self.bundle, env=self.environment, capture_output=True, text=True)

    def program(self, name: str, script: str) -> None:
        (self.unpacked / name).write_text(f"#!/bin/sh\n{script}\n")

    def torch(self, content: str) -> None:
        (Path(self.environment["PYTHONPATH"]) / "torch.py").write_text(content)

    def report(self) -> dict:
        return json.loads((self.bundle / "report" / "report.json").read_text())


@pytest.fixture(scope="module")
def unpacked(parts, tmp_path_factory):
    machine = Machine(parts, tmp_path_factory.mktemp("machine"))
    assert machine.check("--unpack").returncode == 0
    return machine


@pytest.fixture
def machine(unpacked, tmp_path):
    """The machine, without a GPU."""
    machine = unpacked
    machine.environment["PYTHONPATH"] = str(tmp_path)
    # Hides the torch that this machine may have.
    machine.torch("raise ImportError('there is none')")
    machine.program("rerankd", "echo 'error: `--device cuda:0` cannot be used: no driver'; exit 3")
    machine.program("cuda-tests", "echo 'test cuda_graph::a ... ok'; echo 'tiny-bert: off by 1e-6'")
    return machine


def test_everything_that_is_read_is_unpacked(machine):
    for name in (
        "onnxruntime/libonnxruntime.so",
        f"onnxruntime/{bundle.PROVIDER}",
        "check.py",
        "benches/cuda.py",
        "models/minilm-l6-rank/model.safetensors",
        "tests/reference/tiny-bert.json",
        "tests/reference/models/tiny-bert/model.safetensors",
    ):
        assert (machine.unpacked / name).is_file(), name
    assert os.access(machine.unpacked / "rerankd", os.X_OK)


def test_without_a_gpu_the_report_says_so(machine):
    done = machine.check()
    assert done.returncode == check.NO_GPU, done.stdout + done.stderr
    assert "NOT CHECKED: torch cannot be imported" in done.stdout
    report = machine.report()
    assert "torch cannot be imported" in report["no GPU"]
    assert [(s["name"], s["outcome"]) for s in report["steps"]] == [("message", "passed"), ("graphs", "passed")]
    assert report["steps"][1]["figures"]["measured"] == ["tiny-bert: off by 1e-6"]
    assert "no GPU: torch" in (machine.bundle / "report" / "report.md").read_text()


def test_a_step_that_fails_is_reported_and_the_next_one_runs(machine):
    machine.program("rerankd", "echo 'Segmentation fault'; exit 139")
    assert machine.check().returncode == check.NO_GPU
    failed, passed = machine.report()["steps"]
    assert (failed["outcome"], passed["outcome"]) == ("failed", "passed")
    assert "Segmentation fault" in (machine.bundle / "report" / "report.md").read_text()


def test_on_a_gpu_a_failure_is_an_exit_code(machine):
    machine.torch(GPU_FOUND)
    assert machine.check("--only", "parity").returncode == check.PASSED
    assert machine.report()["gpu"] == "a GPU"
    machine.program("cuda-tests", "echo 'test cuda::fp32 ... tiny-bert: off by 1e-2'; echo FAILED; exit 101")
    assert machine.check("--only", "parity").returncode == check.FAILED
    (step,) = machine.report()["steps"]
    assert step["reason"] == "`cuda-tests` ended with code 101"
    assert step["figures"]["tests"] == ["cuda::fp32"] and "off by 1e-2" in step["figures"]["measured"][0]
    assert machine.check("--only", "other").returncode == check.USAGE


def test_what_a_step_measured_is_kept_when_it_fails(machine):
    machine.torch(GPU_FOUND)
    machine.program("rerankd", """echo 'rerankd: slow'; echo '{"overload": {"kept": false}}'; exit 1""")
    assert machine.check("--only", "overload").returncode == check.FAILED
    (step,) = machine.report()["steps"]
    assert (step["reason"], step["figures"]) == ("`rerankd` ended with code 1", {"overload": {"kept": False}})


def test_a_server_that_is_not_ready_in_time_leaves_its_log(tmp_path, monkeypatch):
    program = tmp_path / "rerankd"
    program.write_text("#!/bin/sh\necho 'waiting for the driver'\nexec tail -f /dev/null\n")
    program.chmod(0o755)
    monkeypatch.setattr(check, "PROGRAM", program)
    step = check.Step("serves")
    with pytest.raises(check.StepError, match="not ready after 1 seconds"):
        check.serves(step, 1)
    assert "waiting for the driver" in step.output


def test_a_bundle_that_is_not_whole_is_refused(machine):
    hidden = (machine.unpacked / "model.unpacked").rename(machine.unpacked / "hidden")
    part = (machine.bundle / "model.tar.xz").rename(machine.bundle / "hidden")
    done = machine.check()
    assert done.returncode == check.USAGE and "model.tar.xz is missing" in done.stderr
    hidden.rename(machine.unpacked / "model.unpacked")
    part.rename(machine.bundle / "model.tar.xz")


def test_a_wrong_command_line_is_told_from_a_check_without_a_gpu(machine):
    for flags in (["--nonsense"], ["--report"], ["--only", "nothing"]):
        assert machine.check(*flags).returncode == check.USAGE, flags


def test_a_step_ends_at_its_limit():
    step = check.Step("endless")
    with pytest.raises(check.StepError, match="more than 0 seconds"):
        check.run(["tail", "-f", "/dev/null"], 0.2, step)


def test_a_figure_that_the_limit_cut_off_hides_no_other():
    step = check.Step("cut off")
    step.output = 'warming up\n{"ratio": 2.5}\n{"rat'
    assert check.reports(step) == [{"ratio": 2.5}]
    assert check.last_report(step) == {"ratio": 2.5}


def test_the_documentation_names_the_exit_codes():
    for code in (check.PASSED, check.FAILED, check.NO_GPU, check.USAGE):
        assert f"| {code} |" in OPERATING[OPERATING.index("#### Check on a GPU") :]


# ONNX Runtime's CUDA provider on a stand-in for CUDA

PROVIDER_LIBRARY = TARGET / "onnxruntime-gpu" / "libonnxruntime.so"
# Libraries that the provider loads, and what each exports of the stand-in.
LIBRARIES = {
    "libcuda.so.1": "cu*;",
    "libcudart.so.13": "cuda*; __cuda*;",
    "libcublas.so.13": "cublas*;",
    "libcublasLt.so.13": "cublasLt*;",
    "libcurand.so.10": "curand*;",
    "libcudnn.so.9": "cudnn*;",
}
FLASH, MEMORY_EFFICIENT = "flash_fwd_kernel", "attention_kernel_batched"
# A model of every form that attention has, and its kernels in 16 bits: flash attention adds nothing to scores.
KERNELS = {
    "tiny-bert": {FLASH},
    "tiny-gte": {FLASH},
    "tiny-mpnet": {MEMORY_EFFICIENT},
    "tiny-jina-v1": {MEMORY_EFFICIENT},
    # Layers with and without a sliding window.
    "tiny-modernbert": {FLASH, MEMORY_EFFICIENT},
    "tiny-ettin": {FLASH, MEMORY_EFFICIENT},
    "tiny-deberta-v2-unshared": {MEMORY_EFFICIENT},
    "tiny-deberta-v3": {MEMORY_EFFICIENT},
    "causal-qwen3": {MEMORY_EFFICIENT},
    "causal-gemma": {MEMORY_EFFICIENT},
    "causal-mistral": {MEMORY_EFFICIENT},
}


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standin")
    for name, exported in LIBRARIES.items():
        versions = folder / "versions"
        versions.write_text(f"{name} {{ global: {exported} local: *; }};\n")
        flags = ["-O1", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}", f"-Wl,--version-script={versions}"]
        source = ROOT / "tests" / "deploy" / "standin.c"
        subprocess.run([which("cc"), *flags, "-o", folder / name, source, "-lpthread"], check=True)
    return folder


@pytest.mark.skipif(
    which("cc") is None or not PROVIDER_LIBRARY.exists(),
    reason="NOT RUN: no C compiler, or no ONNX Runtime for CUDA (make onnxruntime-gpu)",
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_node_has_a_kernel(standin, tmp_path, name, precision):
    trace = tmp_path / "trace"
    model = ROOT / "tests" / "reference" / "models" / name
    flags = ["--bare", "--json", "--duration", "1s", "--warm-up", "0s", "--target-ms", "0", "--workload", "mixed"]
    engine = ["--model", model, "--device", "cuda", "--precision", precision]
    environment = {"ORT_DYLIB_PATH": PROVIDER_LIBRARY, "LD_LIBRARY_PATH": standin, "STANDIN_TRACE": trace}
    command = [binary(), "bench", *flags, "--", *engine]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["info"]["device"], report["info"]["precision"]) == ("cuda:0", precision)
    # Batches of `mixed` have different numbers of sequences, which a binding must not keep.
    assert list(report["bare"]["summary"]["statuses"]) == ["200"]
    calls = trace.read_text()
    assert "bad launch" not in calls
    # Scores are never written to memory, and nothing is copied before attention.
    assert "Softmax" not in calls and "TransposeQKV" not in calls
    expected = {MEMORY_EFFICIENT} if precision == "fp32" else KERNELS[name]
    assert {kernel for kernel in (FLASH, MEMORY_EFFICIENT) if kernel in calls} == expected
