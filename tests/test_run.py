"""Executing chapters: what is measured, and what is said when a cell fails or a kernel is killed."""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import refresh_notebooks
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from optbook import cli, machine, notebooks

ROOT = Path(__file__).parents[1]
KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


def write_notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_execute_fills_in_the_outputs(tmp_path):
    seen = []
    path = write_notebook(tmp_path / "a.ipynb", "x = 6", "print(x * 7)")
    run = notebooks.execute(path, lambda done, total: seen.append((done, total)))
    assert run.problem is None
    assert run.notebook.cells[1].outputs[0].text == "42\n"
    assert seen == [(1, 2), (2, 2)]
    assert run.peak_mb > 10
    assert not nbformat.read(path, as_version=4).cells[1].outputs  # the file is left alone


@pytest.mark.parametrize(
    ("source", "said"),
    [("1 / 0", "code cell 2: ZeroDivisionError: division by zero"), (KILL, "the kernel was killed in code cell 2")],
)
def test_execute_names_the_problem(tmp_path, source, said):
    run = notebooks.execute(write_notebook(tmp_path / "a.ipynb", "x = 1", source, "y = 2"))
    assert said in run.problem


MANY = "for i in range(3000): display({'text/plain': 'x' * 2000 + str(i)}, raw=True)"


def test_all_that_a_cell_shows_is_kept(tmp_path):
    run = notebooks.execute(write_notebook(tmp_path / "a.ipynb", MANY))
    shown = [int(output.data["text/plain"].strip("x")) for output in run.notebook.cells[0].outputs]
    assert shown == list(range(3000))


def test_what_a_cell_shows_is_not_left_out_in_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "OUTPUT_TIMEOUT", 0)
    run = notebooks.execute(write_notebook(tmp_path / "a.ipynb", MANY))
    assert run.problem == "code cell 1: not all that it shows has arrived"


def test_what_was_not_executed_keeps_no_outputs_and_cells_are_counted_as_they_stand(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "1 / 0", "", "2 / 0", "print(1)")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].metadata["tags"] = ["raises-exception"]
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="old")]
    nbformat.write(notebook, path)
    run = notebooks.execute(path)
    assert run.problem == "code cell 3: ZeroDivisionError: division by zero"
    assert not run.notebook.cells[3].outputs


def regex_folded(text):
    """What nbclient makes of carriage returns, in quadratic time."""
    return re.sub(r".*\r(?=[^\n])", "", text)


@given(st.text("ab\r\n"))
def test_carriage_returns_are_folded_as_nbclient_does(text):
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=part) for part in (text[:3], text[3:])]
    (merged,) = notebooks.one_of_each_stream(outputs)
    assert merged.text == regex_folded(text)


def test_streams_stand_where_each_began_and_stdout_first():
    parts = [("stderr", "1"), ("stdout", "2"), ("stderr", "3"), ("stdout", "4")]
    outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in parts]
    outputs.insert(2, nbformat.v4.new_output("display_data"))
    merged = notebooks.one_of_each_stream(outputs)
    assert [output.get("text") for output in merged] == ["24", "13", None]


def test_ctrl_c_ends_the_command_and_its_kernel(tmp_path):
    path = write_notebook(tmp_path / "slow.ipynb", "open('begun', 'w').close()\nimport time\ntime.sleep(60)")
    code = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from optbook.cli import main\nmain()"
    command = [sys.executable, "-c", code, "run", str(path), str(path), "--out", str(tmp_path / "out")]
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (tmp_path / "begun").exists():
        time.sleep(0.1)
        assert process.poll() is None
    started = process.children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive


def test_stable_keeps_what_is_meant_and_drops_the_rest(tmp_path):
    run = notebooks.execute(write_notebook(tmp_path / "a.ipynb", "print(1)"))
    run.notebook.cells[0].metadata["tags"] = ["solution"]
    stable = refresh_notebooks.stable(run.notebook)
    assert dict(stable.cells[0].metadata) == {"tags": ["solution"]}
    assert stable.metadata.language_info == {"name": "python"}


def test_nbval_reports_a_killed_kernel_as_such(tmp_path):
    path = write_notebook(tmp_path / "killed.ipynb", KILL)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-p", "conftest", "-c", os.devnull, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 1
    assert "the kernel was killed while this cell ran" in result.stdout


def test_run_command_writes_notebooks_and_pages(tmp_path):
    good = write_notebook(tmp_path / "01_good.ipynb", "print(1)")
    bad = write_notebook(tmp_path / "02_bad.ipynb", "1 / 0")
    out = tmp_path / "out"
    result = CliRunner().invoke(cli.main, ["run", str(good), str(bad), "--out", str(out)])
    assert result.exit_code == 1
    assert nbformat.read(out / "notebooks" / "01_good.ipynb", as_version=4).cells[0].outputs
    index = (out / "index.html").read_text()
    assert "01_good.html" in index
    assert "division by zero" in index
    assert (out / "01_good.html").stat().st_size > 0
    assert not list(out.rglob(".partial*"))


def test_bad_use_has_exit_code_2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["run"], ["run", "missing.ipynb"], ["nothing"]):
        assert CliRunner().invoke(cli.main, arguments).exit_code == 2


def test_doctor_prints_every_line_and_fails_on_a_false_one(monkeypatch, capsys):
    machine.doctor()
    assert all(line.startswith("yes") for line in capsys.readouterr().out.splitlines())
    monkeypatch.setattr(machine, "checklist", lambda: {"the sky is blue": True, "pigs fly": False})
    with pytest.raises(RuntimeError, match="pigs fly"):
        machine.doctor()


def test_doctor_command_names_versions_and_presets():
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == 0
    for expected in ("jax", "memory", "opt_6.7b_en", "6,658,465,792"):
        assert expected in result.output


def test_locked_versions_are_read():
    assert machine.locked_versions()["keras-hub"] == importlib.metadata.version("keras-hub")
