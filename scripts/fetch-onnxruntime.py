#!/usr/bin/env python3
"""Puts the ONNX Runtime library of the pinned version into a folder.

    fetch-onnxruntime.py FOLDER [--cuda] [--machine x86_64|aarch64]

pip downloads the wheel and checks its sha256 against onnxruntime.txt beside this file; the libraries
inside and their licenses are unpacked and nothing is installed. With `--cuda` it is the build for CUDA,
whose provider lies beside it; CUDA and cuDNN themselves are not fetched. Does nothing when the folder
already holds it.
"""

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PINS = Path(__file__).with_name("onnxruntime.txt")
# What the build for CUDA loads from the folder it lies in.
PROVIDERS = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")
# What must be passed on with the library, and its name beside files of others.
LICENSES = {"LICENSE": "LICENSE.onnxruntime", "ThirdPartyNotices.txt": "NOTICES.onnxruntime"}


def pin(package: str) -> tuple[str, str]:
    """The pinned version of `package`, and its lines."""
    match = re.search(rf"^{re.escape(package)}==(\S+)(?: .*\\\n)*.*$", PINS.read_text(), re.MULTILINE)
    if match is None:
        sys.exit(f"{PINS}: no line `{package}==VERSION`")
    return match[1], match[0]


def download(pinned: str, machine: str, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(pinned + "\n")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.11"),
        *("--platform", f"manylinux_2_28_{machine}", "--platform", f"manylinux_2_27_{machine}"),
        *("--dest", str(folder), "--requirement", str(requirements)),
    ]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cuda", action="store_true", help="the build for CUDA; x86_64 only")
    parser.add_argument("--machine", default=platform.machine(), choices=["x86_64", "aarch64"])
    arguments = parser.parse_args()
    if arguments.cuda and arguments.machine != "x86_64":
        sys.exit(f"no ONNX Runtime for CUDA is pinned for {arguments.machine}")

    version, pinned = pin("onnxruntime-gpu" if arguments.cuda else "onnxruntime")
    library = arguments.folder / f"libonnxruntime.so.{version}"
    providers = PROVIDERS if arguments.cuda else ()
    # Paths in the wheel, and the names that they get.
    names = {**LICENSES, **{f"capi/{name}": name for name in (*providers, library.name)}}
    if all((arguments.folder / name).exists() for name in names.values()):
        return
    what = "ONNX Runtime for CUDA" if arguments.cuda else "ONNX Runtime"
    print(f"fetching {what} {version} for {arguments.machine}", file=sys.stderr)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(pinned, arguments.machine, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            for path, name in names.items():
                # Written beside and renamed, so that an interrupted run leaves no half a library.
                partial = arguments.folder / f"{name}.partial"
                with archive.open(f"onnxruntime/{path}") as packed, partial.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
                partial.rename(arguments.folder / name)
    link = arguments.folder / "libonnxruntime.so"
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)


if __name__ == "__main__":
    main()
