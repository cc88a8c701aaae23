#!/usr/bin/env python3
"""Packs a built `rerankd` into a wheel, a Debian package and a tarball.

    dist.py FOLDER --binary FILE [--machine x86_64|aarch64] [--onnxruntime FOLDER] [--runner COMMAND]

Writes these into FOLDER, with the bill of materials and SHA256SUMS over all of them. The same inputs give
the same bytes: entries are sorted, belong to root, and have the time of the commit, or of
SOURCE_DATE_EPOCH. `--runner` runs a binary for another machine, such as `qemu-aarch64 -L /usr/aarch64-linux-gnu`:
manual pages and completions are what the binary itself prints. It gets paths relative to the repository, which it may
see elsewhere, as `python3 scripts/aarch64.py qemu-aarch64` does.

All of them hold the same tree below a prefix: `bin/rerankd`, `lib/rerankd/libonnxruntime.so.VERSION`, and
`share/`.
"""

import argparse
import base64
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

import components

ROOT = components.ROOT
# Of the C library. ONNX Runtime needs it too, so that an older one gains nothing.
OLDEST_GLIBC = (2, 28)
DEBIAN_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
UNITS = ("rerankd.service", "rerankd.socket")
# Where the units of config/ expect the program, and where packages put it.
UNIT_PROGRAM, PACKAGE_PROGRAM = "/opt/rerankd/bin/rerankd", "/usr/bin/rerankd"
SUMMARY = "HTTP reranking service for sentence-transformers cross-encoders"
MAINTAINER = "rerankd maintainers <maintainers@rerankd.invalid>"


@dataclasses.dataclass(frozen=True)
class File:
    content: bytes
    mode: int = 0o644


# By path, without a leading slash.
Tree = dict[str, File]


@dataclasses.dataclass(frozen=True)
class Release:
    version: str
    machine: str
    glibc: tuple[int, int]
    # Seconds since 1970 that every entry has.
    time: int


def needed_glibc(*contents: bytes) -> tuple[int, int]:
    """The newest version of glibc whose symbols are named, which each ELF file lists in its strings."""
    found = {
        tuple(map(int, match.groups()))
        for content in contents
        for match in re.finditer(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)", content)
    }
    return max([OLDEST_GLIBC, *found])


def described(command: list[str]) -> Tree:
    """Manual pages and completions below `share/`, as the binary writes them."""
    tree: Tree = {}
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as folder:
        subprocess.run([*command, "man", Path(folder).relative_to(ROOT)], cwd=ROOT, check=True)
        for page in Path(folder).iterdir():
            tree[f"share/man/man1/{page.name}"] = File(page.read_bytes())
    places = {
        "bash": "share/bash-completion/completions/rerankd",
        "fish": "share/fish/vendor_completions.d/rerankd.fish",
        "zsh": "share/zsh/site-functions/_rerankd",
    }
    for shell, path in places.items():
        done = subprocess.run([*command, "completions", shell], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        tree[path] = File(done.stdout)
    return tree


def prefix_tree(binary: Path, library: Path, command: list[str], made_of: components.Materials) -> Tree:
    """What lies below the prefix, wherever that is."""
    bill = json.dumps(components.bill_of_materials(made_of), indent=1) + "\n"
    documents = {
        "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_bytes(),
        "LICENSE": (ROOT / "LICENSE").read_bytes(),
        "README.md": (ROOT / "README.md").read_bytes(),
        "THIRD-PARTY-NOTICES": components.notices(made_of).encode(),
        "rerankd.cdx.json": bill.encode(),
        "rerankd.toml": (ROOT / "config/rerankd.toml").read_bytes(),
    }
    return {
        "bin/rerankd": File(binary.read_bytes(), 0o755),
        f"lib/rerankd/{library.name}": File(library.read_bytes()),
        **described(command),
        **{f"share/doc/rerankd/{name}": File(content) for name, content in documents.items()},
    }


def tar_gz(tree: Tree, seconds: int) -> bytes:
    """A compressed tar archive; folders that the paths imply are entries too."""
    folders = {str(parent) for path in tree for parent in Path(path).parents if parent.name}
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 6, packed, mtime=seconds) as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path in sorted([*folders, *tree]):
                entry = tarfile.TarInfo(path)
                entry.mtime = seconds
                if path in tree:
                    entry.size, entry.mode = len(tree[path].content), tree[path].mode
                    archive.addfile(entry, io.BytesIO(tree[path].content))
                else:
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(entry)
    return packed.getvalue()


def tarball(release: Release, tree: Tree) -> tuple[str, bytes]:
    name = f"rerankd-{release.version}-linux-{release.machine}"
    units = {f"share/doc/rerankd/{unit}": File((ROOT / "config" / unit).read_bytes()) for unit in UNITS}
    return f"{name}.tar.gz", tar_gz({f"{name}/{path}": file for path, file in {**tree, **units}.items()}, release.time)


def wheel(release: Release, tree: Tree) -> tuple[str, bytes]:
    """The tree as the wheel's scripts and data, beside the Python package."""
    tag = f"py3-none-manylinux_{release.glibc[0]}_{release.glibc[1]}_{release.machine}"
    name = f"rerankd-{release.version}"
    licenses = ("LICENSE", "THIRD-PARTY-NOTICES")
    metadata = [
        *("Metadata-Version: 2.4", "Name: rerankd", f"Version: {release.version}", f"Summary: {SUMMARY}"),
        *("License-Expression: Apache-2.0", *(f"License-File: {file}" for file in licenses)),
        *("Requires-Python: >=3.11", "Description-Content-Type: text/markdown", ""),
        (ROOT / "README.md").read_text(),
    ]
    files: Tree = {
        f"rerankd/{path.name}": File(path.read_bytes())
        for path in (ROOT / "python/rerankd").iterdir()
        if path.suffix == ".py" or path.name == "py.typed"
    }
    for path, file in tree.items():
        place = path.replace("bin/", "scripts/", 1) if path.startswith("bin/") else f"data/{path}"
        files[f"{name}.data/{place}"] = file
    information = f"{name}.dist-info"
    files[f"{information}/METADATA"] = File("\n".join(metadata).encode())
    files[f"{information}/WHEEL"] = File(
        f"Wheel-Version: 1.0\nGenerator: rerankd\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    )
    for file in licenses:
        files[f"{information}/licenses/{file}"] = tree[f"share/doc/rerankd/{file}"]
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for path, file in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(file.content).digest()).rstrip(b"=").decode()
        rows.writerow((path, f"sha256={digest}", len(file.content)))
    rows.writerow((f"{information}/RECORD", "", ""))

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        # The metadata comes last, as the format recommends.
        last = {f"{information}/RECORD": File(record.getvalue().encode())}
        ordered = sorted(files.items(), key=lambda item: (item[0].startswith(information), item[0]))
        for path, file in [*ordered, *last.items()]:
            entry = zipfile.ZipInfo(path, time.gmtime(release.time)[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, whatever this is run on.
            entry.external_attr = (0o100000 | file.mode) << 16
            archive.writestr(entry, file.content)
    return f"{name}-{tag}.whl", packed.getvalue()


POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload
    # After an upgrade; a service that does not run stays so.
    if [ -n "$2" ]; then systemctl try-restart rerankd.service; fi
fi
"""
PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now rerankd.socket rerankd.service
fi
"""
POSTRM = """\
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    # Keys that an administrator put there, and models that were downloaded.
    rm -rf /etc/rerankd /var/cache/rerankd /var/cache/private/rerankd
fi
if [ -d /run/systemd/system ]; then systemctl --system daemon-reload; fi
"""


def debian(release: Release, tree: Tree) -> tuple[str, bytes]:
    """The tree below /usr, the units, and the settings as a file that upgrades leave alone."""
    files: Tree = {}
    for path, file in tree.items():
        if path.startswith("share/man/"):
            file = File(gzip.compress(file.content, mtime=0))
            path += ".gz"
        path = path.replace("share/zsh/site-functions", "share/zsh/vendor-completions")
        files[f"usr/{path}"] = file
    documents = "usr/share/doc/rerankd"
    # What Debian calls the two: licenses in one file, and the changes compressed.
    own, others = (files.pop(f"{documents}/{name}").content for name in ("LICENSE", "THIRD-PARTY-NOTICES"))
    files[f"{documents}/copyright"] = File(own + b"\n" + others)
    changes = files.pop(f"{documents}/CHANGELOG.md").content
    files[f"{documents}/changelog.gz"] = File(gzip.compress(changes, mtime=0))
    files["etc/rerankd/rerankd.toml"] = files.pop(f"{documents}/rerankd.toml")
    for unit in UNITS:
        text = (ROOT / "config" / unit).read_text()
        # The comment at the top is for an installation by hand.
        text = re.sub(r"\A# Put it in .*?\n(?=\[)", "", text, flags=re.DOTALL)
        files[f"usr/lib/systemd/system/{unit}"] = File(text.replace(UNIT_PROGRAM, PACKAGE_PROGRAM).encode())

    size = sum(-(-len(file.content) // 1024) for file in files.values())
    # procps: the unit reloads with its `kill`.
    control = [
        *("Package: rerankd", f"Version: {release.version}", f"Architecture: {DEBIAN_MACHINES[release.machine]}"),
        *(f"Maintainer: {MAINTAINER}", f"Installed-Size: {size}"),
        f"Depends: libc6 (>= {release.glibc[0]}.{release.glibc[1]}), libgcc-s1, libstdc++6 (>= 8), procps",
        *("Recommends: ca-certificates", "Section: net", "Priority: optional", f"Description: {SUMMARY}"),
        *(" Takes a query and documents over HTTP, and returns the documents ordered by", " relevance.", ""),
    ]
    sums = [f"{hashlib.md5(file.content).hexdigest()}  {path}\n" for path, file in sorted(files.items())]
    about: Tree = {
        "control": File("\n".join(control).encode()),
        "conffiles": File(b"/etc/rerankd/rerankd.toml\n"),
        "md5sums": File("".join(sums).encode()),
        "postinst": File(POSTINST.encode(), 0o755),
        "prerm": File(PRERM.encode(), 0o755),
        "postrm": File(POSTRM.encode(), 0o755),
    }
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar_gz(about, release.time),
        "data.tar.gz": tar_gz(files, release.time),
    }
    name = f"rerankd_{release.version}_{DEBIAN_MACHINES[release.machine]}.deb"
    return name, ar(members, release.time)


def ar(members: dict[str, bytes], seconds: int) -> bytes:
    packed = b"!<arch>\n"
    for name, content in members.items():
        packed += f"{name:<16}{seconds:<12}{0:<6}{0:<6}{0o100644:<8o}{len(content):<10}`\n".encode()
        packed += content + b"\n" * (len(content) % 2)
    return packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--machine", default=platform.machine(), choices=sorted(DEBIAN_MACHINES))
    parser.add_argument("--onnxruntime", type=Path, default=ROOT / "target/onnxruntime")
    parser.add_argument("--runner", default="", help="what runs a binary for another machine")
    arguments = parser.parse_args()
    if arguments.machine != platform.machine() and not arguments.runner:
        sys.exit(f"a binary for {arguments.machine} needs `--runner`, such as `qemu-{arguments.machine}`")

    made_of = components.materials(arguments.machine, arguments.onnxruntime)
    library = (arguments.onnxruntime / "libonnxruntime.so").resolve()
    command = [*shlex.split(arguments.runner), os.path.relpath(arguments.binary.resolve(), ROOT)]
    tree = prefix_tree(arguments.binary, library, command, made_of)
    glibc = needed_glibc(tree["bin/rerankd"].content, tree[f"lib/rerankd/{library.name}"].content)
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    release = Release(version, arguments.machine, glibc, components.source_time())

    arguments.folder.mkdir(parents=True, exist_ok=True)
    bill = f"rerankd-{version}-linux-{release.machine}.cdx.json", tree["share/doc/rerankd/rerankd.cdx.json"].content
    for name, content in (wheel(release, tree), debian(release, tree), tarball(release, tree), bill):
        (arguments.folder / name).write_bytes(content)
        print(f"{len(content) / 1e6:6.1f} MB  {arguments.folder / name}")
    # Of all that lies there, such as that of another machine.
    files = sorted(path for path in arguments.folder.iterdir() if path.name.startswith("rerankd"))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (arguments.folder / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
