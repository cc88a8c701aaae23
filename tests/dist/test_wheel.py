"""The wheel in an empty environment: no compiler, no Rust, nothing of this repository."""

import os
import subprocess
import venv

import pytest
from conftest import ROOT, only, serving


@pytest.fixture(scope="session")
def environment(packages, tmp_path_factory):
    """An environment with the wheel alone, and the variables of a process in it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    variables = {"PATH": f"{folder}/bin", "HOME": str(folder)}
    install = [folder / "bin/pip", "install", "-q", "--disable-pip-version-check", "--no-index", only(packages, "*.whl")]
    subprocess.run(install, check=True, env=variables)
    return folder, variables


def python(environment, program: str, **more: str) -> subprocess.CompletedProcess:
    folder, variables = environment
    return subprocess.run(
        [folder / "bin/python", "-c", program], cwd=folder, env={**variables, **more}, capture_output=True, text=True, timeout=120
    )


def test_rerankd_serve_answers(environment):
    folder, variables = environment
    with serving("rerankd", "serve", cwd=folder, env=variables, executable=folder / "bin/rerankd") as process:
        # No Python runs beside it: the program on the PATH is the server itself.
        assert os.readlink(f"/proc/{process.pid}/exe") == str(folder / "bin/rerankd")
        maps = open(f"/proc/{process.pid}/maps").read()
        assert f"{folder}/lib/rerankd/libonnxruntime.so." in maps and "libpython" not in maps


def test_manual_pages_and_completions_are_installed(environment):
    folder, variables = environment
    for page in ("rerankd.1", "rerankd-serve.1"):
        assert (folder / "share/man/man1" / page).read_text().startswith(".ie")
    completions = folder / "share/bash-completion/completions/rerankd"
    ask = f'source {completions}; COMP_WORDS=(rerankd heal); COMP_CWORD=1; _rerankd rerankd heal; echo "${{COMPREPLY[@]}}"'
    assert subprocess.check_output(["bash", "-c", ask], text=True).split() == ["healthcheck"]


def test_uninstalling_leaves_nothing(packages, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    pip = [tmp_path / "venv/bin/pip", "--disable-pip-version-check", "-q"]

    def files():
        return {str(path) for path in (tmp_path / "venv").rglob("*") if path.is_file() and "__pycache__" not in path.parts}

    before = files()
    subprocess.run([*pip, "install", "--no-index", only(packages, "*.whl")], check=True)
    assert files() > before
    subprocess.run([*pip, "uninstall", "-y", "rerankd"], check=True)
    assert files() == before


def test_server_is_a_context_manager(environment):
    # A proxy of the environment is not asked for this machine's own server.
    done = python(environment, """
import rerankd
with rerankd.Server(threads=1, served_model_name="mine") as server:
    results = server.rerank("A man is eating food.", ["A monkey plays the drums.", "A man eats pasta."], top_n=1)
    (score,) = server.predict([("A man is eating food.", "A man eats pasta.")])
    assert results == [rerankd.Result(1, score)], results
    process = server._process
assert process.returncode == 0
""", http_proxy="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr


def test_a_server_that_does_not_start_says_why(environment):
    done = python(environment, "import rerankd\nwith rerankd.Server(tretds=1): pass")
    assert "rerankd ended with exit code 2" in done.stderr and "`RERANKD_TRETDS`" in done.stderr


def test_documented_python_runs(environment):
    text = (ROOT / "docs/installing.md").read_text()
    snippets = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert snippets
    for snippet in snippets:
        done = python(environment, snippet)
        assert done.returncode == 0 and done.stdout, done.stderr
