"""What .github/ holds: workflows that no one here can run, against linters; and the release's own scripts."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import yaml
from stack import ROOT, which

FOLDER = ROOT / ".github"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.yaml"))
MAKEFILE = (ROOT / "Makefile").read_text()


def lint(linter: str, *files) -> subprocess.CompletedProcess:
    """With shellcheck for the scripts in them, which is installed beside the linters."""
    path = f"{sys.prefix}/bin:{os.environ['PATH']}"
    return subprocess.run([which(linter), *files], cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)


@pytest.mark.parametrize("linter", ["actionlint", "jactionlint"])
def test_linters_find_nothing(linter):
    done = lint(linter, *WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("linter", ["actionlint", "jactionlint"])
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("matrix.machine", "matrix.machin"), ("needs: notes", "needs: note"), ('cd artifacts && sha256sum', "cd $artifacts && sha256sum")],
)
def test_a_fault_is_noticed(linter, right, wrong, tmp_path):
    text = (FOLDER / "workflows/release.yaml").read_text()
    assert right in text
    (tmp_path / "release.yaml").write_text(text.replace(right, wrong))
    assert lint(linter, tmp_path / "release.yaml").returncode == 1


def steps():
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            for step in job["steps"]:
                yield f"{path.name}: {name}", step


def test_workflows_call_make_as_a_person_does():
    targets = {target for line in re.findall(r"^([\w -]+):(?!=)", MAKEFILE, re.MULTILINE) for target in line.split()}
    called = {target for _, step in steps() for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert {"audit", "bench-regression", "dist", "docs", "fuzz", "lint", "soak", "test"} <= called
    assert called <= targets, called - targets
    # Nothing else compiles, tests or packs.
    others = [step["run"] for _, step in steps() if "run" in step and "make " not in step["run"]]
    for command in others:
        assert re.match(r"sudo apt-get |cargo install --locked |cd artifacts && sha256sum |gh release create ", command), command


def test_variables_that_make_is_given_are_read():
    for _, step in steps():
        for name in re.findall(r"\bmake [a-z-]+ .*?([A-Z_]+)=", step.get("run", "")):
            assert re.search(rf"\b{name}\b", MAKEFILE), name


def test_the_container_is_of_this_machine_unless_told():
    def recipe(*variables):
        environment = {name: value for name, value in os.environ.items() if name not in ("ARCH", "MAKEFLAGS")}
        command = ["make", "--no-print-directory", "-n", "proof-container", *variables]
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    assert "--arch" not in recipe()
    assert "--arch=arm64" in recipe("ARCH=arm64")


def test_actions_are_pinned_with_their_version():
    for path in WORKFLOWS:
        for line in re.findall(r"uses: (.*)", path.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), f"{path.name}: {line}"


@pytest.mark.parametrize("form", ["bug.yaml", "score.yaml", "feature.yaml"])
def test_issue_forms_are_what_github_reads(form):
    command = [which("check-jsonschema"), "--builtin-schema", "vendor.github-issue-forms", FOLDER / "ISSUE_TEMPLATE" / form]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def release_notes():
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / "scripts/release-notes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_release_notes_are_the_section_of_the_version():
    changelog = "# Changelog\n\n## [Unreleased]\n\n- later\n\n## [0.2.0] - 2027-01-02\n\n### Added\n- this\n\n## [0.1.0] - 2026-12-01\n\n- first\n"
    assert release_notes().notes(changelog, "0.2.0") == "### Added\n- this\n"
    assert release_notes().notes(changelog, "0.1.0") == "- first\n"
    with pytest.raises(SystemExit, match="no section"):
        release_notes().notes(changelog, "0.2")


def test_a_tag_of_another_version_is_refused():
    done = subprocess.run(["python3", ROOT / "scripts/release-notes.py", "v99.0.0"], capture_output=True, text=True)
    assert done.returncode == 1 and "the tag should be" in done.stderr
