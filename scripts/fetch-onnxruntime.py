#!/usr/bin/env python3
"""Puts libonnxruntime.so of the pinned version into a folder.

    fetch-onnxruntime.py FOLDER [--machine x86_64|aarch64]

pip downloads the wheel and checks its sha256 against onnxruntime.txt beside this file; the library
inside is unpacked and nothing is installed. Does nothing when the folder already holds it.
"""

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PINS = Path(__file__).with_name("onnxruntime.txt")


def pinned_version() -> str:
    match = re.search(r"^onnxruntime==(\S+)", PINS.read_text(), re.MULTILINE)
    if match is None:
        sys.exit(f"{PINS}: no line `onnxruntime==VERSION`")
    return match.group(1)


def download(machine: str, folder: Path) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.11"),
        *("--platform", f"manylinux_2_28_{machine}", "--platform", f"manylinux_2_27_{machine}"),
        *("--dest", str(folder), "--requirement", str(PINS)),
    ]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machine", default=platform.machine(), choices=["x86_64", "aarch64"])
    arguments = parser.parse_args()

    version = pinned_version()
    library = arguments.folder / f"libonnxruntime.so.{version}"
    if library.exists():
        return
    print(f"fetching ONNX Runtime {version} for {arguments.machine}", file=sys.stderr)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(arguments.machine, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(f"onnxruntime/capi/{library.name}")
    # Written beside and renamed, so that an interrupted run leaves no half a library.
    partial = library.with_suffix(".partial")
    partial.write_bytes(data)
    partial.rename(library)
    link = arguments.folder / "libonnxruntime.so"
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)


if __name__ == "__main__":
    main()
