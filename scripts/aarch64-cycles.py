#!/usr/bin/env python3
"""Computes the cycles of the inner loops for aarch64 as LLVM models its processors: no measurement.

    aarch64-cycles.py

Compiles the kernels as a release does, cuts the innermost loops of products out of their machine code, and asks
llvm-mca how many cycles they take on each core. A tile is its loop as often as the width asks, after its sums are
zeroed and before they are stored, tile after tile. The peak is what the same model says of the product instruction
alone. Prints the tables of docs/bench/aarch64.md. Needs root and debootstrap.
"""

import re
import subprocess
import sys
from dataclasses import dataclass

import aarch64

CORES = ("neoverse-n1", "neoverse-v1", "neoverse-v2")
# Cores without an extension.
WITHOUT = {"i8mm": ("neoverse-n1",)}
WIDTHS = (384, 768)
# Of a tile.
ROWS, COLUMNS = 6, 16
# Registers of sums.
SUMS = 24
LIBRARY = f"target/aarch64/build/{aarch64.TARGET}/release/librerankd_kernels.rlib"


@dataclass
class Kernel:
    name: str
    symbol: str
    # The instruction that multiplies, and the multiply-adds that one of it makes.
    product: str
    each: int
    # Bytes of a number, of rows and of weights alike.
    size: int
    extension: str = ""


KERNELS = (
    Kernel("fp32, `FMLA`", r"isa::neon::multiply_floats", "fmla", 4, 4),
    Kernel("int8, `SDOT`", r"isa::neon_dotprod::multiply", "sdot", 16, 1),
    Kernel("int8, `USMMLA`", r"isa::neon_i8mm::multiply", "usmmla", 32, 1, "i8mm"),
    Kernel("int8, `SMULL`, `SADALP`", r"isa::neon::multiply::<6>", "smull", 8, 1),
    Kernel("fp32 attention, `FMLA`", r"perform::run::<.*::Neon, rerankd_kernels::attention::Attend>", "fmla", 4, 4),
)


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


def cycles(core: str, body: list[str], iterations: int) -> float:
    """Cycles of one iteration, of so many one after the other."""
    arguments = ("-mtriple=aarch64-linux-gnu", f"-mcpu={core}", f"-iterations={iterations}")
    silent = ("-instruction-info=0", "-resource-pressure=0")
    report = in_root("llvm-mca", *arguments, *silent, text="\n".join(["loop:", *body, ""]))
    return int(re.search(r"^Total Cycles:\s+(\d+)", report, re.MULTILINE)[1]) / iterations


def alone(product: str, body: list[str]) -> list[str]:
    """The product instruction of a loop with independent sums and nothing else."""
    (first, *_) = [text for text in body if text.split()[0].startswith(product)]
    sums, *operands = re.findall(r"\bv\d+", first)
    rest = first.split(sums, 1)[1]
    for register, operand in enumerate(operands, 30):
        rest = re.sub(rf"\b{operand}\b", f"v{register}", rest, count=1)
    head = first.split(sums, 1)[0]
    return [f"{head}v{register}{rest}" for register in range(SUMS)]


def tile(body: list[str], times: int) -> list[str]:
    """A whole tile: its sums are zeroed, the loop runs, and the sums are stored."""
    zeroed = [f"movi v{register}.2d, #0" for register in range(8, 8 + SUMS)]
    stored = [f"str q{register}, [x30, #{16 * register}]" for register in range(8, 8 + SUMS)]
    return [*zeroed, *body * times, *stored]


def tables(found: dict[str, list[tuple[int, str]]]) -> None:
    print("| loop | core | instructions | cycles | multiply-adds a cycle | of peak | 384 wide | 768 wide |")
    print("|---|---|---|---|---|---|---|---|")
    for kernel in KERNELS:
        bodies = [
            body
            for name, instructions in found.items()
            if re.search(kernel.symbol + r"(?: \(\.llvm\.\d+\))?$", name)
            for body in loops(instructions)
        ]
        is_product = lambda text: text.split()[0].startswith(kernel.product)  # noqa: E731
        body = max(bodies, key=lambda body: sum(map(is_product, body)))
        products = sum(map(is_product, body))
        # Numbers of a row that an iteration multiplies.
        inputs = products * kernel.each // (ROWS * COLUMNS)
        for core in CORES:
            if core in WITHOUT.get(kernel.extension, ()):
                continue
            took = cycles(core, body, 1000)
            best = cycles(core, alone(kernel.product, body), 1000) / SUMS * products
            at_widths = [
                f"{width // inputs * best / cycles(core, tile(body, width // inputs), 10):.3f}" for width in WIDTHS
            ] if "attention" not in kernel.name else ["", ""]
            row = (
                *(kernel.name, core.removeprefix("neoverse-").upper(), len(body), f"{took:.2f}"),
                *(f"{products * kernel.each / took:.1f}", f"{best / took:.3f}", *at_widths),
            )
            print("| " + " | ".join(map(str, row)) + " |")
    print()
    print("| product | width | panel of weights | rows of a tile | bytes a multiply-add |")
    print("|---|---|---|---|---|")
    for name, size in (("fp32", 4), ("int8", 1)):
        for width in WIDTHS:
            panel, rows = COLUMNS * width * size, ROWS * width * size
            each = (panel + rows) / (ROWS * COLUMNS * width)
            print(f"| {name} | {width} | {panel / 1024:.1f} KB | {rows / 1024:.1f} KB | {each:.3f} |")


def main() -> None:
    if lacking := aarch64.missing():
        sys.exit(f"needs {lacking}; hint: `apt-get install debootstrap`")
    aarch64.set_up()
    # Link-time optimization leaves no machine code in the library; it changes nothing inside these loops.
    build = ("cargo", "build", "--release", "--locked", "-p", "rerankd-kernels")
    subprocess.run(aarch64.inside(*build, CARGO_PROFILE_RELEASE_LTO="off"), check=True)
    tables(functions(in_root("llvm-objdump", "-d", "--no-show-raw-insn", "-C", f"/repository/{LIBRARY}")))


if __name__ == "__main__":
    main()
