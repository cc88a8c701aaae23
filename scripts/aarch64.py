#!/usr/bin/env python3
"""Builds for aarch64 on this machine, and runs what was built under emulation.

    aarch64.py COMMAND...      in the root, with the repository as working directory

Needs root, `debootstrap` and `unshare`. The root is Debian's unstable suite, made once in target/aarch64/root:
a compiler of Rust and one of C that cross-compile, the libraries of arm64 beside this machine's own, and QEMU's
emulator of user programs. The repository and this machine's downloaded crates are mounted in it, for that command
alone; crates that are missing are fetched by this machine's own cargo.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "target" / "aarch64"
ROOT = FOLDER / "root"
TARGET = "aarch64-unknown-linux-gnu"
COMPILERS = (
    *("rustc", "cargo", "libstd-rust-dev:arm64"),
    # The first pair is for build scripts.
    *("gcc", "libc6-dev", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
)
PACKAGES = (*COMPILERS, "libc6:arm64", "libstdc++6:arm64", "qemu-user", "llvm")
# Names of the root, where the repository, the crates and what is built are found.
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "CARGO_HOME": "/cargo",
    "CARGO_NET_OFFLINE": "true",
    "CARGO_TERM_COLOR": "never",
    "CARGO_BUILD_TARGET": TARGET,
    "CARGO_TARGET_DIR": "/repository/target/aarch64/build",
    "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER": "aarch64-linux-gnu-gcc",
    "CC_aarch64_unknown_linux_gnu": "aarch64-linux-gnu-gcc",
    "ORT_DYLIB_PATH": "/repository/target/aarch64/onnxruntime/libonnxruntime.so",
}
MOUNT = r"""
set -eu
mount --bind "$REPOSITORY" "$ROOT/repository"
mount --bind "$CARGO" "$ROOT/cargo"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
exec chroot "$ROOT" sh -c 'cd /repository && exec env -i "$@"' inside "$@"
"""


def missing() -> str | None:
    """What this machine lacks, in words."""
    if os.geteuid() != 0:
        return "root"
    path = os.environ["PATH"] + ":/usr/sbin"
    lacking = [name for name in ("debootstrap", "unshare") if not shutil.which(name, path=path)]
    return " and ".join(lacking) or None


def set_up() -> None:
    """Makes the root where it is not there yet, and fetches ONNX Runtime and crates."""
    done = ROOT / "ready"
    wanted = " ".join(PACKAGES)
    if not done.exists() or done.read_text() != wanted:
        print("making a Debian with compilers for aarch64 in target/aarch64/root", file=sys.stderr)
        shutil.rmtree(ROOT, ignore_errors=True)
        ROOT.mkdir(parents=True)
        log = FOLDER / "root.log"
        with log.open("w") as lines:
            for command in root_commands():
                options = {"stdin": subprocess.DEVNULL, "stdout": lines, "stderr": lines}
                if subprocess.run(command, **options).returncode != 0:
                    sys.exit(f"`{' '.join(map(str, command))}` failed; {log} says why")
        done.write_text(wanted)
    fetch = (sys.executable, REPOSITORY / "scripts" / "fetch-onnxruntime.py", FOLDER / "onnxruntime")
    subprocess.run([*fetch, "--machine", "aarch64"], check=True)
    subprocess.run(["cargo", "fetch", "--quiet", "--locked"], check=True, cwd=REPOSITORY)


def root_commands():
    path = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"}["PATH"]
    yield [shutil.which("debootstrap", path=path), "--variant=minbase", "unstable", ROOT]
    for folder in ("repository", "cargo"):
        (ROOT / folder).mkdir()
    add_architecture(ROOT)
    install = ("apt-get", "install", "--yes", "-qq", "--no-install-recommends", *PACKAGES)
    yield ["chroot", ROOT, "env", "DEBIAN_FRONTEND=noninteractive", *install]
    yield ["chroot", ROOT, "apt-get", "clean"]


def add_architecture(root: Path) -> None:
    """Lets apt install packages of arm64 in the root of another architecture."""
    # A mirror may be some weeks behind; what it holds is signed all the same.
    lasting = root / "etc/apt/apt.conf.d/10lasting"
    lasting.write_text('Acquire::Check-Valid-Until "false";\n')
    subprocess.run(["chroot", root, "dpkg", "--add-architecture", "arm64"], check=True)
    subprocess.run(["chroot", root, "apt-get", "-qq", "update"], check=True)


def inside(*command: str, **variables: str) -> list[str]:
    """The command that runs `command` in the root."""
    variables = {**ENVIRONMENT, **variables}
    settings = [f"{name}={value}" for name, value in variables.items()]
    cargo = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    places = (f"REPOSITORY={REPOSITORY}", f"ROOT={ROOT}", f"CARGO={cargo}")
    return [
        *("env", *places, "unshare", "--mount", "sh", "-c", MOUNT, "mount"),
        *(*settings, *command),
    ]


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__.split("\n\n")[1].strip())
    if lacking := missing():
        sys.exit(f"needs {lacking}; hint: `apt-get install debootstrap`")
    set_up()
    command = inside(*sys.argv[1:])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
