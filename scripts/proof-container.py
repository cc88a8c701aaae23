#!/usr/bin/env python3
"""Builds the Dockerfile without a container engine, and tries what the image holds.

    proof-container.py [--arch amd64|arm64] [--cargo-flags FLAGS] [--keep]

Needs root, `buildah`, `debootstrap` and `curl`, and this machine's own Rust. The two base images are
stand-ins: a Debian of the same release that debootstrap makes, and the same one with this machine's
toolchain in it. The Dockerfile itself is built as it stands, stage by stage, in chroot isolation.

Then the image is started twice as its own user with its own environment: by `buildah run`, and with
its root file system mounted read-only. Each time it has a network of its own, so that it listens
where it says by default.

For arm64 on another machine, both stand-ins are of Debian's unstable suite, whose Rust cross-compiles
(scripts/aarch64.py). The image is started once, under emulation, with its root mounted read-only and the
emulator in the volume.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import aarch64

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "target" / "container"
IMAGE = "localhost/rerankd:proof"
MOST_BYTES = 150_000_000
USER = 10001


def run(*command: str | Path, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command], check=True, text=True, stdout=subprocess.PIPE, **options
    )
    return done.stdout.strip()


def buildah(*command: str | Path) -> str:
    places = ("--root", WORK / "storage", "--runroot", WORK / "run")
    return run("buildah", "--storage-driver=vfs", *places, *command)


def check(what: str, holds: bool, found: object) -> None:
    print(f"{'ok' if holds else 'FAILED'}: {what}: {found}", flush=True)
    if not holds:
        sys.exit(1)


def native() -> str:
    """What container engines call the architecture of this machine."""
    return {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def base_images(foreign: bool) -> None:
    """Makes what stands for the base images that the Dockerfile names."""
    text = (ROOT / "Dockerfile").read_text()
    names = dict(re.findall(r"^ARG (RUST_IMAGE|DEBIAN_IMAGE)=(\S+)", text, re.MULTILINE))
    release = "unstable" if foreign else re.search(r":(\w+)-slim$", names["DEBIAN_IMAGE"])[1]
    system = WORK / "debian"
    run("debootstrap", "--variant=minbase", release, system, stdin=subprocess.DEVNULL)
    if foreign:
        aarch64.add_architecture(system)
    # Certificates and settings that this machine reaches its registries with.
    own = Path("usr/local/share/ca-certificates")
    if any(Path("/", own).glob("*.crt")):
        shutil.copytree(Path("/", own), system / own, dirs_exist_ok=True)
    if Path("/etc/pip.conf").exists():
        shutil.copy("/etc/pip.conf", system / "etc")
    import_image(system, names["DEBIAN_IMAGE"])

    compiler = aarch64.COMPILERS if foreign else ("gcc", "libc6-dev")
    install = ("apt-get", "install", "--yes", "-qq", "--no-install-recommends", *compiler, "ca-certificates")
    run("chroot", system, "env", "DEBIAN_FRONTEND=noninteractive", *install)
    if not foreign:
        sysroot = Path(run("rustc", "--print", "sysroot"))
        for part in ("bin", "lib"):
            shutil.copytree(sysroot / part, system / "usr/local" / part, symlinks=True, dirs_exist_ok=True)
    import_image(system, names["RUST_IMAGE"])
    shutil.rmtree(system)


def import_image(system: Path, name: str) -> None:
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, system, "/")
    buildah("commit", "--quiet", "--rm", container, name)


def build(arch: str, cargo_flags: str) -> None:
    begun = time.monotonic()
    revision = run("git", "-C", ROOT, "rev-parse", "HEAD")
    # Old versions of buildah do not say by themselves where they build.
    settings = (f"BUILDPLATFORM=linux/{native()}", f"CARGO_FLAGS={cargo_flags}", f"REVISION={revision}")
    arguments = [f"--build-arg={setting}" for setting in settings]
    log = WORK / "build.log"
    with log.open("w") as lines:
        places = ("--root", WORK / "storage", "--runroot", WORK / "run")
        done = subprocess.run(
            [
                *("buildah", "--storage-driver=vfs", *map(str, places), "bud", "--pull-never"),
                *("--isolation=chroot", "--format=docker", "--layers=false", f"--platform=linux/{arch}"),
                *arguments,
                *("--tag", IMAGE, str(ROOT)),
            ],
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
    if done.returncode != 0:
        print("\n".join(log.read_text().splitlines()[-40:]))
    check("the Dockerfile builds", done.returncode == 0, f"{time.monotonic() - begun:.0f} s")


def inspect(arch: str) -> None:
    image = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]
    check("architecture", image["architecture"] == arch, image["architecture"])
    config = image["config"]
    check("user", config["User"] == f"{USER}:{USER}", config["User"])
    check("health check", config["Healthcheck"]["Test"][-1] == "healthcheck", config["Healthcheck"])
    check("volume", config["Volumes"] == {"/data": {}}, config["Volumes"])
    check("entry", config["Entrypoint"] == ["/opt/rerankd/rerankd"], config["Entrypoint"])
    labels = config["Labels"]
    wanted = {"title", "description", "licenses", "version", "revision"}
    found = {name.removeprefix("org.opencontainers.image.") for name in labels if labels[name]}
    check("labels", wanted <= found, ", ".join(sorted(found)))


def look(root: Path) -> None:
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    check(f"at most {MOST_BYTES / 1e6:.0f} MB uncompressed", size <= MOST_BYTES, f"{size / 1e6:.1f} MB")
    largest = sorted(files, key=lambda path: -path.stat().st_size)[:6]
    for path in largest:
        print(f"    {path.stat().st_size / 1e6:6.1f} MB  /{path.relative_to(root)}")
    programs = [
        f"/{path.relative_to(root)}"
        for path in files
        if os.access(path, os.X_OK) and path.stat().st_mode & 0o111 and ".so" not in path.name
    ]
    check("no program but the server, no shell", programs == ["/opt/rerankd/rerankd"], programs)
    roots = (root / "etc/ssl/certs/ca-certificates.crt").read_text().count("BEGIN CERTIFICATE")
    check("CA roots", roots > 100, roots)
    foreign = [path for path in files if path.stat().st_uid == USER or path.stat().st_mode & 0o022]
    check("nothing in it may be written by its user", not foreign, foreign)
    check("but its volume may", (root / "data").stat().st_uid == USER, "/data")


# Runs in a network and mount namespace of its own; the arguments are the command that starts the server.
INSIDE = r"""
set -u
python3 - <<'LOOPBACK'
import fcntl, socket, struct
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
with socket.socket() as any:
    fcntl.ioctl(any, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
LOOPBACK
if [ "$READ_ONLY" = yes ]; then
    mkdir -p "$ROOT/proc" "$ROOT/dev"
    mount --bind "$ROOT" "$ROOT"
    mount --rbind /proc "$ROOT/proc"
    mount --rbind /dev "$ROOT/dev"
    mount -t tmpfs -o uid=10001,gid=10001 tmpfs "$ROOT/data"
    mount -o remount,bind,ro "$ROOT"
    if touch "$ROOT/opt/x" 2>/dev/null; then echo "the root can be written"; exit 1; fi
fi
if [ -n "$EMULATOR" ]; then install -m 755 "$EMULATOR" "$ROOT/data/emulator"; fi
"$@" serve & server=$!
trap 'kill -KILL $server 2>/dev/null' EXIT
for _ in $(seq 300); do
    "$@" healthcheck && break
    kill -0 $server || exit 1
    sleep 0.2
done
pid=$(pgrep -x "$NAME" -n)
grep '^Uid:' /proc/"$pid"/status
curl -sS -f http://127.0.0.1:8080/rerank -d '{"query": "A man is eating food.",
    "documents": ["A monkey plays the drums.", "Somebody eats a meal."]}' || exit 1
echo
kill -TERM "$pid"
wait $server
code=$?
echo "exit $code"
"""


def start(name: str, root: Path, read_only: bool, command: list[str], emulator: str = "") -> None:
    environment = {
        **os.environ,
        "ROOT": str(root),
        "READ_ONLY": "yes" if read_only else "no",
        "EMULATOR": emulator,
        "NAME": "emulator" if emulator else "rerankd",
    }
    inside = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "bash", "-c", INSIDE)
    done = subprocess.run(
        [*inside, "inside", *command], env=environment, text=True, stdout=subprocess.PIPE, timeout=180
    )
    print(done.stdout, end="")
    lines = done.stdout.splitlines()
    check(f"{name}: the health check passes", any(line.startswith("ready at") for line in lines), "")
    uid = next((line for line in lines if line.startswith("Uid:")), "")
    check(f"{name}: runs as its user", uid.split()[1:] == [str(USER)] * 4, uid)
    answer = json.loads(next((line for line in lines if line.startswith("{\"id\"")), "{}"))
    order = [result["index"] for result in answer.get("results", [])]
    check(f"{name}: /rerank answers", order == [1, 0], order)
    check(f"{name}: stops cleanly", lines[-1] == "exit 0", lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=native(), choices=["amd64", "arm64"])
    parser.add_argument("--cargo-flags", default="", help="more flags for cargo inside the build")
    parser.add_argument("--keep", action="store_true", help="leave the image in target/container")
    arguments = parser.parse_args()

    missing = [name for name in ("buildah", "debootstrap", "curl", "unshare") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        sys.exit(f"needs root and {', '.join(missing) or 'its tools'}; hint: `apt-get install buildah debootstrap`")

    foreign = arguments.arch != native()
    if foreign and arguments.arch != "arm64":
        sys.exit("on this machine, only its own image can be built")
    if foreign:
        aarch64.set_up()

    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        base_images(foreign)
        build(arguments.arch, arguments.cargo_flags)
        inspect(arguments.arch)
        container = buildah("from", "--pull-never", IMAGE)
        root = Path(buildah("mount", container))
        look(root)
        program = "/opt/rerankd/rerankd"
        if not foreign:
            places = ("--root", WORK / "storage", "--runroot", WORK / "run")
            by_buildah = ["buildah", "--storage-driver=vfs", *map(str, places), "run", "--isolation=chroot"]
            start("buildah run", root, False, [*by_buildah, container, "--", program])
        variables = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]["Env"]
        user = f"--userspec={USER}:{USER}"
        chroot = ["env", "-i", *variables, shutil.which("chroot"), user, str(root)]
        if foreign:
            emulator = str(aarch64.ROOT / "usr/bin/qemu-aarch64")
            start("read-only root", root, True, [*chroot, "/data/emulator", program], emulator)
        else:
            start("read-only root", root, True, [*chroot, program])
    finally:
        if not arguments.keep:
            shutil.rmtree(WORK, ignore_errors=True)
    print("the image is what the Dockerfile promises")


if __name__ == "__main__":
    main()
