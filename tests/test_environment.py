"""What conda, pip and Binder install agrees with the lock, and the wheel has everything that the chapters need."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import make_environment
import pytest
import yaml

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def names(lines):
    return {re.match(r"[\w.-]+", line)[0] for line in lines}


def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def test_environment_is_what_the_tool_makes_of_the_lock():
    assert (ROOT / "environment.yml").read_text(encoding="utf-8") == make_environment.environment(LOCK.splitlines()), (
        "make derived"
    )


def test_conda_installs_the_lock():
    """Read as YAML, as conda reads it: every line of the lock but keras-hub's, which the second command adds."""
    *_, pip = environment()["dependencies"]
    assert set(pip["pip"]) == {line for line in LOCK.splitlines() if not line.startswith("keras-hub==")}
    assert environment()["name"] == "optbook"


def test_every_reason_is_for_a_line_of_the_lock():
    assert set(make_environment.REASONS) <= names(LOCK.splitlines())


@pytest.mark.parametrize("name", ["tensorflow", "tensorflow-text", "tf-keras", "jax-cuda12-plugin", "torch"])
def test_the_lock_has_neither_tensorflow_nor_cuda(name):
    assert name not in names(LOCK.splitlines())


def test_every_dependency_is_locked():
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = PYPROJECT["project"]["dependencies"] + [one for extra in extras if extra != "gpu" for one in extras[extra]]
    assert names(wanted) - {"optbook"} <= names(LOCK.splitlines()), "make lock"


def test_make_test_gpu_installs_the_extra():
    (extra,) = PYPROJECT["project"]["optional-dependencies"]["gpu"]
    assert f"CUDA := {extra.partition(';')[0]}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files in a wheel of the package, built in a copy: setuptools leaves its build where it works."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "optbook", folder / "source" / "optbook", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, folder / "source"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found for setuptools" in result.stderr:
        pytest.skip("pip fetches setuptools from a package index, which cannot be reached")
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_file_of_the_package(wheel):
    """The embedded presets with their weights and tokenizers among them."""
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "optbook").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == {name for name in wheel if name.startswith("optbook/")}
    for preset in ("optbook_700k_en", "optbook_4m_en"):
        assert f"optbook/assets/{preset}/model.weights.h5" in wheel
        assert f"optbook/assets/{preset}/assets/tokenizer/vocabulary.json" in wheel
