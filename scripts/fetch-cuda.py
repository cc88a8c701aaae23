#!/usr/bin/env python3
"""Puts what of CUDA and cuDNN ONNX Runtime loads into a folder, for LD_LIBRARY_PATH.

    fetch-cuda.py FOLDER

pip downloads NVIDIA's wheels and checks their sha256 against cuda.txt beside this file; the libraries
inside are unpacked and nothing is installed. They are NVIDIA's, under NVIDIA's licences, whose texts
are put beside them. The driver is not among them. Does nothing when the folder already holds them.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

PINS = Path(__file__).with_name("cuda.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    # Written last: where it lies, all of them do.
    pinned = folder / PINS.name
    if pinned.exists() and pinned.read_bytes() == PINS.read_bytes():
        return
    print("fetching CUDA and cuDNN", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
            *("--only-binary", ":all:"),
            *(f"--platform=manylinux{kind}_x86_64" for kind in ("_2_27", "2014", "2010", "1")),
            *("--dest", scratch, "--requirement", str(PINS)),
        ]
        subprocess.run(command, check=True)
        for wheel in sorted(Path(scratch).glob("*.whl")):
            unpack(wheel, folder)
            wheel.unlink()
    shutil.copy(PINS, pinned)


def unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if ".so" in path.name and "lib" in path.parts:
                target = folder / path.name
            elif "licen" in path.name.lower() and ".dist-info" in name:
                target = folder / f"LICENSE-{wheel.name.split('-')[0]}"
            else:
                continue
            with archive.open(name) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)


if __name__ == "__main__":
    main()
