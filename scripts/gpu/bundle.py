#!/usr/bin/env python3
"""Packs what the check on a GPU needs, for a machine without network and toolchain.

    make gpu-bundle OUT=DIR [GPU_ARCH=90]
    bundle.py OUT --onnxruntime FOLDER [--arch 90] [--program FILE] [--tests FILE] [--preset 9]

Builds the program and the tests, unless they are given. Writes parts of at most 60 MiB and `check.sh`, which unpacks
and runs them: `onnxruntime.tar.xz` is ONNX Runtime for CUDA, `app.tar.xz` the program, the tests and their fixtures,
`model.tar.xz` the built-in model.

ONNX Runtime's CUDA provider has machine code for every kind of GPU. In the bundle, the code of all but GPU_ARCH (90:
H100 and H200; 80: A100; 89: L4, L40; 86: A10; 75: T4) is overwritten with zeros, which pack to nothing. Such a copy
is for measuring on that GPU, and nothing else.
"""

import argparse
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MOST_BYTES = 60 << 20
PROVIDER = "libonnxruntime_providers_cuda.so"
# Beside the program and the tests: what they and the benchmark read.
FIXTURES = ["tests/reference/quality.tsv", "tests/reference/models", "benches/cuda.py", "benches/compare.py"]
MODEL = "models/minilm-l6-rank"

# A container of GPU code: magic, version (16 bits), bytes of the header (16), bytes of all entries (64).
CONTAINER = struct.Struct("<4sHHQ")
CONTAINER_MAGIC = b"\x50\xed\x55\xba"
# One entry: kind and version (16 bits each), bytes of its header (32), bytes of its code (64). The architecture
# follows at 28.
ENTRY = struct.Struct("<HHIQ")
ARCHITECTURE = struct.Struct("<I")
ARCHITECTURE_AT = 28
INTERMEDIATE, MACHINE_CODE = 1, 2


def keep_only(arch: int, code: bytearray) -> int:
    """Zeroes the GPU code that is not for `arch`, in place. Returns the bytes that are for it."""
    kept, at = 0, code.find(CONTAINER_MAGIC)
    while at >= 0:
        _, version, header, size = CONTAINER.unpack_from(code, at)
        entry, end = at + header, at + header + size
        if (version, header) != (1, CONTAINER.size) or end > len(code):
            at = code.find(CONTAINER_MAGIC, at + 1)
            continue
        while entry < end:
            kind, _, header, size = ENTRY.unpack_from(code, entry)
            (built_for,) = ARCHITECTURE.unpack_from(code, entry + ARCHITECTURE_AT)
            if kind not in (INTERMEDIATE, MACHINE_CODE) or entry + header + size > end:
                break
            if kind == MACHINE_CODE and built_for == arch:
                kept += size
            else:
                code[entry + header : entry + header + size] = bytes(size)
            entry += header + size
        at = code.find(CONTAINER_MAGIC, end)
    return kept


def built(*command: str) -> Path:
    """The executable that cargo builds, optimized and without the embedded model, which is a part of its own."""
    cargo = os.environ.get("CARGO", "cargo")
    flags = ["--release", "--locked", "--no-default-features", "--message-format", "json-render-diagnostics"]
    done = subprocess.run([cargo, *command, *flags], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    messages = map(json.loads, done.stdout.splitlines())
    *_, executable = filter(None, (message.get("executable") for message in messages))
    return Path(executable)


def stripped(program: Path) -> bytes:
    """An executable without symbols."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / program.name
        subprocess.run(["strip", "-o", copy, program], check=True)
        return copy.read_bytes()


def provider(file: Path, arch: int) -> bytes:
    code = bytearray(file.read_bytes())
    if keep_only(arch, code) == 0:
        sys.exit(f"{file} has no code for GPUs of architecture {arch}; hint: GPU_ARCH=90 is that of H100 and H200")
    return bytes(code)


class Part:
    """An archive in the making."""

    def __init__(self, path: Path):
        self.path = path
        self.files: list[tuple[str, bytes, int]] = []

    def add(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self.files.append((name, content, mode))

    def add_tree(self, name: str) -> None:
        """A file or folder of the repository, under its own name."""
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                self.add(str(file.relative_to(ROOT)), file.read_bytes())

    def write(self, preset: int) -> str:
        with lzma.open(self.path, "wb", preset=preset) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content, mode in self.files:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), mode
                archive.addfile(entry, io.BytesIO(content))
        size = self.path.stat().st_size
        if size > MOST_BYTES:
            sys.exit(f"{self.path} has {size / 2**20:.1f} MiB; {MOST_BYTES >> 20} is the most that a part may have")
        return f"{self.path}: {size / 2**20:.1f} MiB"


def parts(arguments: argparse.Namespace) -> list[Part]:
    onnxruntime = Part(arguments.out / "onnxruntime.tar.xz")
    for name in ("libonnxruntime.so", "libonnxruntime_providers_shared.so"):
        onnxruntime.add(f"onnxruntime/{name}", (arguments.onnxruntime / name).read_bytes(), 0o755)
    code = provider(arguments.onnxruntime / PROVIDER, arguments.arch)
    onnxruntime.add(f"onnxruntime/{PROVIDER}", code, 0o755)

    app = Part(arguments.out / "app.tar.xz")
    app.add("rerankd", stripped(arguments.program or built("build", "--bin", "rerankd")), 0o755)
    app.add("cuda-tests", stripped(arguments.tests or built("test", "--test", "models", "--no-run")), 0o755)
    app.add("check.py", (HERE / "check.py").read_bytes(), 0o755)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    app.add("commit", (commit.stdout.strip() or "unknown").encode())
    for fixture in FIXTURES:
        app.add_tree(fixture)
    for reference in sorted((ROOT / "tests/reference").glob("*.json")):
        app.add_tree(str(reference.relative_to(ROOT)))

    model = Part(arguments.out / "model.tar.xz")
    model.add_tree(MODEL)
    return [onnxruntime, app, model]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--onnxruntime", type=Path, required=True, help="what `make onnxruntime-gpu` fetches")
    parser.add_argument("--arch", type=int, default=90, help="compute capability of the GPU, without the dot")
    parser.add_argument("--program", type=Path, help="rerankd, built without the embedded model")
    parser.add_argument("--preset", type=int, default=6, help="0 packs fastest, 9 smallest")
    parser.add_argument("--tests", type=Path, help="the test program `models`")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        for line in pool.map(lambda part: part.write(arguments.preset), parts(arguments)):
            print(line, flush=True)
    shutil.copy(HERE / "check.sh", arguments.out)


if __name__ == "__main__":
    main()
