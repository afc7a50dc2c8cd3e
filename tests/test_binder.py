"""What mybinder.org builds from binder/, and that a chapter's memory fits there."""

import re
import subprocess
import sys
from pathlib import Path

import make_environment
import nbformat

ROOT = Path(__file__).parents[1]
BINDER = ROOT / "binder"
LOCK = set((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
REQUIREMENTS = set((BINDER / "requirements.txt").read_text(encoding="utf-8").splitlines()[1:])  # the first is a comment
NOT_FOR_READERS = ("pytest", "ruff", "playwright", "hypothesis", "sphinx", "jupyterlab", "distributed", "tensorflow")


def test_binder_installs_lines_of_the_lock():
    assert REQUIREMENTS <= LOCK, "make derived"


def test_binder_installs_what_the_package_needs_and_no_more():
    names = {make_environment.package(line) for line in REQUIREMENTS}
    assert {"jax", "keras", "matplotlib", "tokenizers", "kagglehub"} <= names
    assert not [name for name in names if name.startswith(NOT_FOR_READERS)]
    assert "keras-hub" not in names  # pip would bring TensorFlow; postBuild adds it without


def test_a_new_dependency_reaches_binder():
    lock = ["a==1", "b==2", "keras-hub==3"]
    assert make_environment.requirements(lock, {"b", "keras-hub"}).splitlines()[1:] == ["b==2"]


def test_the_same_python_for_binder_and_conda():
    assert (BINDER / "runtime.txt").read_text().strip() == f"python-{make_environment.PYTHON}"


def test_post_build_is_a_shell_script_that_can_run():
    script = BINDER / "postBuild"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert re.search(r"--no-deps .*keras-hub==", script.read_text())


def run_nbval(tmp_path, limit):
    """nbval on a notebook of two cells, as `make test` runs it but with this limit in MB."""
    cells = [nbformat.v4.new_code_cell("x = bytearray(60_000_000)"), nbformat.v4.new_code_cell("del x")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "small.ipynb")
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text() + f"\nMAX_MB = {limit}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "small.ipynb"]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)


def test_the_memory_of_a_kernel_is_reported(tmp_path):
    result = run_nbval(tmp_path, limit=1500)
    assert result.returncode == 0
    (megabytes,) = re.findall(r"small.ipynb: the kernel reached (\d+) MB", result.stdout)
    assert 100 < int(megabytes) < 1500


def test_too_much_memory_is_an_error(tmp_path):
    result = run_nbval(tmp_path, limit=90)
    assert result.returncode == 1
    assert re.search(r"the notebook's kernel reached \d+ MB, more than 90", result.stdout)
    assert "2 passed" in result.stdout and "1 error" in result.stdout
