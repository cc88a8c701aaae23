#!/usr/bin/env python3
"""Counts the cycles of the inner loops for aarch64 as LLVM models its processors: no measurement.

    aarch64-cycles.py      after `make test-aarch64`, or of a fresh build

Disassembles the kernels in the release profile, cuts the innermost loops of products out, and asks llvm-mca how
many cycles an iteration takes on each core. The peak is what the same model says of the loop's product instruction
alone, with as many independent sums. Rows and strips beside it: how long the loop runs at a width, with what is
before and after it counted in full.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import aarch64  # noqa: E402

CORES = ("neoverse-n1", "neoverse-v1", "neoverse-v2")
WIDTHS = (384, 768)
ROWS, COLUMNS = 6, 16
LIBRARY = "target/aarch64/build/aarch64-unknown-linux-gnu/release/librerankd_kernels.rlib"


@dataclass
class Kernel:
    name: str
    symbol: str
    """The instruction that multiplies."""
    product: str
    """Products of numbers that one of it makes."""
    each: int
    """Bytes of a number of a row, and of a weight."""
    size: int
    """The extension, which cores without it are not asked about."""
    extension: str | None = None


KERNELS = (
    Kernel("fp32, `FMLA`", r"isa::neon::multiply_floats", "fmla", 4, 4),
    Kernel("int8, `SMULL`", r"isa::neon::multiply::<6>", "smull", 8, 1),
    Kernel("int8, `SDOT`", r"isa::neon_dotprod::multiply::<6>", "sdot", 16, 1),
    Kernel("int8, `USMMLA`", r"isa::neon_i8mm::multiply::<3>", "usmmla", 32, 1, "i8mm"),
)
WITHOUT = {"neoverse-n1": ("i8mm", "bf16")}


def in_root(*command: str, text: str = "") -> str:
    done = subprocess.run(
        aarch64.inside(*command), input=text, text=True, stdout=subprocess.PIPE, check=True
    )
    return done.stdout


def functions(listing: str) -> dict[str, list[tuple[int, str]]]:
    """Instructions with their addresses, by function."""
    found, lines = {}, []
    for line in listing.splitlines():
        if head := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            lines = found.setdefault(head[1], [])
        elif body := re.match(r"^\s*([0-9a-f]+):\s+(.*)$", line):
            lines.append((int(body[1], 16), body[2].replace("\t", " ").strip()))
    return found


def loops(instructions: list[tuple[int, str]]) -> list[list[str]]:
    """Bodies of the innermost loops: what lies between a branch backwards and its target."""
    places = {address: index for index, (address, _) in enumerate(instructions)}
    spans = []
    for index, (address, text) in enumerate(instructions):
        branch = re.match(r"^(?:b\.\w+|cbn?z|tbn?z)\b[^<]*0x([0-9a-f]+) <", text)
        if branch and int(branch[1], 16) in places and int(branch[1], 16) < address:
            spans.append((places[int(branch[1], 16)], index))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    # A target stands as a label, so that what is left can be assembled.
    return [
        [re.sub(r"0x[0-9a-f]+ <.*>$", "loop", text) for _, text in instructions[first : last + 1]]
        for first, last in inner
    ]


def cycles(core: str, body: list[str], iterations: int = 1000) -> float:
    """Cycles of one iteration, after many."""
    arguments = ("-mtriple=aarch64-linux-gnu", f"-mcpu={core}", f"-iterations={iterations}")
    report = in_root("llvm-mca", *arguments, "-instruction-info=0", "-resource-pressure=0", text="loop:\n" + "\n".join(body))
    return int(re.search(r"^Total Cycles:\s+(\d+)", report, re.MULTILINE)[1]) / iterations


def alone(product: str, body: list[str]) -> list[str]:
    """The product instruction of a loop with independent sums and nothing else."""
    (first, *_) = [text for text in body if text.split()[0].startswith(product)]
    sums, *operands = re.findall(r"\bv\d+", first)
    rest = first.split(sums, 1)[1]
    for register, operand in enumerate(operands, 30):
        rest = re.sub(rf"\b{operand}\b", f"v{register}", rest, count=1)
    head = first.split(sums, 1)[0]
    return [f"{head}v{register}{rest}" for register in range(24)]


def main() -> None:
    if lacking := aarch64.missing():
        sys.exit(f"needs {lacking}")
    aarch64.set_up()
    build = ("cargo", "build", "--release", "--locked", "-p", "rerankd-kernels")
    subprocess.run(aarch64.inside(*build, CARGO_PROFILE_RELEASE_LTO="off"), check=True)
    listing = in_root("llvm-objdump", "-d", "--no-show-raw-insn", "-C", f"/repository/{LIBRARY}")
    found = functions(listing)
    for kernel in KERNELS:
        (name,) = [name for name in found if name.endswith(kernel.symbol)]
        counted = [(sum(text.split()[0].startswith(kernel.product) for text in body), body) for body in loops(found[name])]
        count, body = max(counted)
        print(kernel.name, count, len(body))
        if "-v" in sys.argv:
            print("\n".join(body))
        for core in CORES:
            if kernel.extension in WITHOUT.get(core, ()):
                continue
            took, best = cycles(core, body), cycles(core, alone(kernel.product, body)) / 24
            print(f"  {core}: {took:.2f} cycles for {count}; peak {count * best:.2f}: {count * best / took:.3f}")


if __name__ == "__main__":
    main()
