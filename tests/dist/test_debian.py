"""The Debian package in a Debian of its own: installed, asked, purged."""

import os
import re
import shutil
import subprocess

import pytest
from conftest import only, serving

MISSING = [tool for tool in ("debootstrap", "dpkg-deb") if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")]
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or bool(MISSING), reason=f"NOT RUN: needs root and {', '.join(MISSING) or 'its tools'} (apt-get install debootstrap)"
)
# What dpkg, apt, the linker and the tools asked here write for themselves, whichever package comes or goes.
BOOKKEEPING = re.compile(r"(var/(lib/dpkg|lib/apt|cache/(apt|ldconfig|debconf|man)|log)|run|etc/ld\.so\.cache|proc|dev|tmp)(/|$)")


@pytest.fixture(scope="session")
def system(packages, tmp_path_factory):
    """The root of a minimal Debian of this machine's release, with what the package depends on."""
    root = tmp_path_factory.mktemp("debian") / "root"
    release = re.search(r"^VERSION_CODENAME=(\w+)", open("/etc/os-release").read(), re.MULTILINE)[1]
    # What the package depends on, and the tools that read what it installs; systemd does not run there.
    depends = subprocess.check_output(["dpkg-deb", "--field", only(packages, "*.deb"), "Depends"], text=True)
    names = [name.split()[0] for name in depends.split(",")] + ["systemd", "man-db", "bash-completion"]
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(names)}", release, root]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:]
    shutil.copy(only(packages, "*.deb"), root / "tmp/rerankd.deb")
    return root


def inside(root, *command, check: bool = True) -> str:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(["chroot", root, *command], env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def files(root) -> set[str]:
    found = {os.path.relpath(os.path.join(folder, name), root) for folder, folders, names in os.walk(root) for name in (*folders, *names)}
    return {path for path in found if not BOOKKEEPING.match(path)}


def test_the_package_from_installing_to_purging(system):
    before = files(system)
    inside(system, "dpkg", "--install", "/tmp/rerankd.deb")
    assert inside(system, "dpkg", "--verify", "rerankd") == ""
    units = [f"/usr/lib/systemd/system/rerankd.{kind}" for kind in ("service", "socket")]
    assert inside(system, "systemd-analyze", "verify", "--man=no", *units) == ""
    # Installing starts nothing by itself.
    assert not (system / "etc/systemd/system/multi-user.target.wants/rerankd.service").exists()
    started = re.search(r"^ExecStart=(\S+) serve --config (\S+)$", (system / units[0][1:]).read_text(), re.MULTILINE)
    for path in started.groups():
        assert (system / path[1:]).is_file(), path
    assert "rerankd serve" in inside(system, "man", "-P", "cat", "rerankd-serve").replace("-serve", " serve")
    assert "healthcheck" in inside(system, "bash", "-c", "source /usr/share/bash-completion/completions/rerankd; COMP_WORDS=(rerankd h); COMP_CWORD=1; _rerankd rerankd h; echo ${COMPREPLY[@]}")
    program, settings = started.groups()
    # With /proc, from which a program learns where it lies, and a user without rights, as the unit has one.
    mounted = ("unshare", "--mount", "sh", "-c", 'mount -t proc proc "$0/proc" && exec chroot --userspec=65534:65534 "$0" "$@"')
    with serving(*mounted, system, program, "serve", "--config", settings, env={"PATH": os.environ["PATH"], "RERANKD_LOG_LEVEL": "warn"}):
        pass

    # What an administrator and the server put there goes with a purge, and stays with a removal.
    (system / "etc/rerankd/keys").write_text("search secret\n")
    (system / "var/cache/private/rerankd").mkdir(parents=True)
    inside(system, "dpkg", "--remove", "rerankd")
    assert (system / "etc/rerankd/rerankd.toml").exists() and (system / "etc/rerankd/keys").exists()
    assert not (system / "usr/bin/rerankd").exists()
    inside(system, "dpkg", "--purge", "rerankd")
    # The folder above the models is systemd's, which has it where a service with a cache ran.
    left = (files(system) ^ before) - {"var/cache/private"}
    assert not left, sorted(left)


def test_the_package_is_well_formed(packages):
    package = only(packages, "*.deb")
    fields = subprocess.check_output(["dpkg-deb", "--field", package], text=True)
    listing = subprocess.check_output(["dpkg-deb", "--contents", package], text=True).splitlines()
    assert {line.split()[1] for line in listing} == {"0/0"}
    assert re.search(r"^Depends: libc6 \(>= 2\.\d+\), libgcc-s1, libstdc\+\+6", fields, re.MULTILINE)
    size = int(re.search(r"^Installed-Size: (\d+)$", fields, re.MULTILINE)[1])
    assert abs(size - sum(int(line.split()[2]) for line in listing) / 1024) < 100


def test_nothing_of_a_library_that_the_package_does_not_depend_on(packages, tmp_path):
    """Every library that the binary and ONNX Runtime name is of the three packages, or in this one."""
    subprocess.run(["dpkg-deb", "--extract", only(packages, "*.deb"), tmp_path], check=True)
    from elftools.elf.elffile import ELFFile

    for path in (tmp_path / "usr/bin/rerankd", only(tmp_path / "usr/lib/rerankd", "libonnxruntime.so.*")):
        with path.open("rb") as file:
            dynamic = ELFFile(file).get_section_by_name(".dynamic")
            names = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
        libc = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
        assert names <= libc | {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libgcc_s.so.1", "libstdc++.so.6"}, path
