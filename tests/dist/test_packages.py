"""What scripts/dist.py packs: that the same commit gives the same bytes, and that each package holds what it says."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile

from conftest import ROOT, only, packed, serving


def test_the_same_inputs_give_the_same_bytes(packages, program, tmp_path, monkeypatch):
    """Also later, elsewhere, in another time zone, with another umask, and by what sees the repository elsewhere."""
    copy = tmp_path / "elsewhere" / "program"
    copy.parent.mkdir()
    copy.write_bytes(program.read_bytes())
    copy.chmod(0o700)
    runner = tmp_path / "runner"
    runner.write_text('#!/bin/sh\nfor word; do case "$word" in /*) exit 1 ;; esac; done\nexec "$@"\n')
    runner.chmod(0o700)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    umask = os.umask(0o077)
    try:
        again = packed(tmp_path / "again", copy, "--runner", runner)
    finally:
        os.umask(umask)
    first, second = ({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} for folder in (packages, again))
    assert len(first) == 5 and first == second


def test_entries_have_the_time_of_the_commit(packages):
    committed = int(subprocess.check_output(["git", "-C", ROOT, "log", "-1", "--format=%ct"], text=True))
    with tarfile.open(only(packages, "*.tar.gz")) as archive:
        assert {entry.mtime for entry in archive} == {committed}
        assert {(entry.uid, entry.gid, entry.uname) for entry in archive} == {(0, 0, "")}
    with zipfile.ZipFile(only(packages, "*.whl")) as archive:
        # A zip archive counts in steps of two seconds.
        whole = time.gmtime(committed - committed % 2)[:6]
        assert {entry.date_time for entry in archive.infolist()} == {whole}


def test_the_tarball_runs_where_it_is_unpacked(packages, tmp_path):
    with tarfile.open(only(packages, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    with serving(folder / "bin/rerankd", "serve", cwd=tmp_path, env={}):
        pass
    assert (folder / "share/doc/rerankd/rerankd.service").is_file()


def test_checksums_are_those_of_the_files(packages):
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=packages, check=True)
    listed = {line.split()[1] for line in (packages / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in packages.iterdir()} - {"SHA256SUMS"}


def test_the_tag_of_the_wheel_is_what_auditwheel_finds(packages):
    wheel = only(packages, "*.whl")
    done = subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tag = re.search(r'is consistent with\s+the following platform tag:\s+"(\w+)"', done.stdout)[1]
    assert wheel.name.endswith(f"-py3-none-{tag}.whl"), done.stdout


def test_every_license_is_in_the_packages(packages):
    bill = json.loads(only(packages, "*.cdx.json").read_text())
    names = {component["name"] for component in bill["components"]}
    assert {"axum", "onig_sys", "onnxruntime", "ring", "tokenizers", "utoipa-swagger-ui-vendored"} <= names
    # What only tests, build scripts and the compiler use is not passed on.
    assert not names & {"criterion", "proptest", "cc", "serde_derive", "syn"}
    with tarfile.open(only(packages, "*.tar.gz")) as archive:
        (notices,) = (entry for entry in archive if entry.name.endswith("/THIRD-PARTY-NOTICES"))
        text = archive.extractfile(notices).read().decode()
    for component in bill["components"]:
        assert f"\n{component['name']} {component['version']}: {component['licenses'][0]['expression']}\n" in text
    for holder in ("Mozilla Foundation", "K.Kosako", "Microsoft Corporation", "Google Inc"):
        assert holder in text, holder


def test_the_bill_of_materials_is_what_cyclonedx_reads(packages):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = only(packages, "*.cdx.json").read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_5)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"purl"', '"pourl"', 1)) is not None
