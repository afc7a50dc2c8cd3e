"""Sweeps: their values, the names of runs, what is run again, how runs fail, two sweeps in one folder, a cluster."""

import concurrent.futures
import contextlib
import errno
import itertools
import json
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from sweeps import PARAMETERS, write_notebook

from optbook import cli, compare
from optbook.compare import _execution
from optbook.compare._record import MIME_TYPE
from optbook.compare._runs import plan_run
from optbook.compare._values import file_name, from_command_line

LOG = "with open('log', 'a') as log:\n    print(name, number, file=log)\nprint('logged')"
RECORD = "from optbook.compare import record\nrecord(total=sum(range(number)), name=name)"
FAULT = """\
import os, signal, time
if fault == "error":
    raise ValueError("two\\nlines")
if fault == "killed":
    ballast = bytes(range(256)) * 1_000_000
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""
SHARED = PARAMETERS + "\nSHARE = 'XLA_PYTHON_CLIENT_MEM_FRACTION'"
VALUES = {"name": ["a", "b"], "number": [3, 4]}


def made(folder):
    """Which runs were made in a folder: the notebooks write it down themselves."""
    log = folder / "log"
    return sorted(log.read_text().splitlines()) if log.exists() else []


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "small.ipynb", LOG, RECORD)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep that is complete: its notebook, its folder, its runs and what was called back. Read only."""
    folder = tmp_path_factory.mktemp("a {folder}")
    log = LOG + "\nimport time; time.sleep(2)"  # long enough for two kernels to meet
    notebook = write_notebook(
        folder / "small.ipynb", log, RECORD, "import os\nprint(os.environ.get(SHARE))", parameters=SHARED
    )
    calls = []
    found = compare.sweep(
        notebook, VALUES, folder / "runs", jobs=2, progress=lambda *arguments: calls.append(arguments)
    )
    return notebook, folder / "runs", found, calls


# Values and names


@pytest.mark.parametrize(
    "text", ["True", "true", "None", "null", "1", "-1", "1_000", "0.1", "1e-5", "1e5", "opt_125m_en", "hf://a/b", "0x1"]
)
def test_values_are_typed_as_papermill_does(text):
    from papermill.cli import _resolve_type

    (value,) = from_command_line([f"name={text}"])["name"]
    assert (type(value), value) == (type(_resolve_type(text)), _resolve_type(text))


def test_the_file_adds_names_and_keeps_commas(tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text("prompt: ['It is, she said', 'No']\nlayers: [[1, 2], [3]]\n")
    assert from_command_line(["dtype=float32, bfloat16"], file) == {
        "prompt": ["It is, she said", "No"],
        "layers": [[1, 2], [3]],
        "dtype": ["float32", "bfloat16"],
    }


@pytest.mark.parametrize(
    "text", ["1e-3", "1E5", "1.5e3", "1_000", "-1", "+1", "1.", ".5", "True", "False", "None", "y"]
)
def test_the_file_types_plain_values_as_the_command_line_does(tmp_path, text):
    file = tmp_path / "values.yaml"
    file.write_text(f"rate: [{text}, [{text}], {{inner: {text}}}, '{text}']\n")
    (value,) = from_command_line([f"rate={text}"])["rate"]
    read = from_command_line([], file)["rate"]
    assert read == [value, [value], {"inner": value}, text]
    assert type(read[0]) is type(value)


def test_words_of_yaml_and_explicit_tags_mean_what_they_say(tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text("a: [true, false, null, ~, !!str 1e-3, !!float 1e-3, '010', 'no', hf://a/b, 01_tokens]\n")
    assert from_command_line([], file) == {
        "a": [True, False, None, None, "1e-3", 0.001, "010", "no", "hf://a/b", "01_tokens"],
    }


@pytest.mark.parametrize(
    "text",
    ["0o10", "010", "-010", "08", "0x1F", "0b11", "1:30", "1:30:30.5", "1__0", "yes", "no", "On", "off", "TRUE", "Null"]
    + [".inf", "-.INF", ".nan", "2026-01-31", "2026-01-31 12:00:00"],
)
def test_what_yaml_and_the_command_line_read_differently_is_refused(tmp_path, text):
    file = tmp_path / "values.yaml"
    file.write_text(f"rate: [0.5, {text}]\n")
    with pytest.raises(
        ValueError, match=re.escape(f"values.yaml: {text} is not the same to YAML as to --set")
    ) as error:
        from_command_line([], file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["inf", "nan", "1e999"])
def test_a_number_that_json_cannot_hold_is_refused_by_name(notebook, tmp_path, text):
    file = tmp_path / "values.yaml"
    file.write_text(f"number: [1, {text}]\n")
    with pytest.raises(ValueError, match="number is (inf|nan), which JSON cannot hold"):
        compare.sweep(notebook, from_command_line([], file), tmp_path / "runs")


@pytest.mark.parametrize(
    ("settings", "yaml", "said"),
    [
        (["dtype"], None, "'dtype' sets nothing"),
        (["=1"], None, "'=1' sets nothing"),
        (["a=1", "a=2"], None, "a is set twice"),
        (["a=1,,2"], None, "an empty value between its commas"),
        (["a=1"], "a: [2]", "set it in one place"),
        ([], "- 1", "must map names to lists"),
        ([], "", "must map names to lists"),
        ([], "a: 1", "must map names to lists"),
        ([], "a: [1", "is not YAML"),
        ([], "a: [1]\na: [2]", "a stands there twice"),
        ([], "on: [1]", "on is not the same to YAML"),
    ],
)
def test_unusable_settings_are_said_in_a_line(tmp_path, settings, yaml, said):
    file = tmp_path / "values.yaml"
    file.write_text(yaml or "")
    with pytest.raises(ValueError, match=said) as error:
        from_command_line(settings, file if yaml is not None else None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "nmae=a"], "has no parameter 'nmae'; it has number, name, fault."),
        (["--set", "name="], "the list of values of name is empty"),
        (["--set", "number=1,2,1"], "number has the value 1 twice"),
        (["--set", "number=nan"], "number is nan, which JSON cannot hold"),
        ([], "there is nothing to compare"),
        (["--set", "number=1", "--out", "small.ipynb"], "nothing can be written to"),
        (["--set", "number=1", "--jobs", "0"], "0 is not in the range"),
        (["--set", "number=1", "--jobs", "2", "--scheduler", "tcp://127.0.0.1:9"], "--jobs counts kernels here"),
        (["--set", "number=1", "--scheduler", "nowhere"], "no Dask scheduler answers at nowhere"),
        (["--report", "."], "name a notebook to run, or --report"),
    ],
)
def test_bad_use_is_said_before_any_kernel_starts(notebook, monkeypatch, arguments, said):
    monkeypatch.chdir(notebook.parent)
    result = CliRunner().invoke(cli.main, ["compare", "small.ipynb", *arguments], terminal_width=500)
    assert result.exit_code == 2
    assert said in result.output
    assert not made(notebook.parent)
    assert not list(notebook.parent.glob("runs/**/*.ipynb"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not a notebook"),
        ("[1]", "is not a notebook"),
        ("{}", "is not a notebook"),
        ('{"nbformat": 3, "worksheets": []}', "has notebook format 3"),
        ('{"nbformat": 4, "metadata": {}, "cells": []}', "has no cell tagged 'parameters'"),
    ],
)
def test_what_is_no_notebook_with_parameters_is_refused(tmp_path, text, said):
    path = tmp_path / "bad.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        compare.sweep(path, {"number": [1]}, tmp_path / "runs")


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"preset": "opt_125m_en", "dtype": "float32"}, "dtype=float32,preset=opt_125m_en.ipynb"),
        ({"rate": 1e-05, "scale": -0.5, "on": True, "of": None}, "of=null,on=true,rate=1e-05,scale=-0.5.ipynb"),
        ({"preset": "kaggle://keras/opt/1"}, "preset=kaggle-keras-opt-1-*.ipynb"),
        ({"text": "1"}, "text=1-*.ipynb"),
        ({"text": "true"}, "text=true-*.ipynb"),
        ({"text": "B"}, "text=B-*.ipynb"),
        ({"text": ""}, "text=-*.ipynb"),
        ({"Text": 1}, "Text=1-*.ipynb"),
        ({"text": 200 * "a"}, "text=" + 115 * "a" + "-*.ipynb"),
        ({"layers": [1, 2]}, "layers=1-2-*.ipynb"),
    ],
)
def test_names_are_readable_and_say_when_they_are_not_enough(parameters, name):
    head, star, tail = name.partition("*")
    found = file_name(parameters)
    assert found == name if not star else found.startswith(head) and len(found) == len(head + tail) + 8


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
near = st.sampled_from(["1", 1, 1.0, "1.0", True, "true", "True", "a", "A", "a-b", "a/b", None, "null", "-1", -1, "é"])
some = st.dictionaries(st.sampled_from(["a", "b", "B", "name"]), near | json_values, min_size=1)


@given(some, some)
def test_names_are_safe_and_each_means_one_run(one, other):
    first, second = file_name(one), file_name(other)
    assert len(first.encode()) < 200
    assert not set(first) & set('/\\:*?"<>|\n ') and not first.startswith(".")
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (first.casefold() == second.casefold()) == same


# Records


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "loss is nan"),
        ([1.0, float("inf")], r"loss\[1\] is inf"),
        ({"a": {1: 2}}, r"loss\['a'\] has the key 1"),
        ({"a": object()}, r"loss\['a'\] is a builtins.object"),
        (["caf\udce9"], r"loss\[0\] is 'caf\\udce9', which is no Unicode text"),
    ],
)
def test_only_json_is_recorded(value, said):
    with pytest.raises((ValueError, TypeError), match=said):
        compare.record(loss=value)


def with_records(path, *contents):
    """A notebook with these outputs under the MIME type of records."""
    write_notebook(path, *["pass"] * len(contents))
    notebook = json.loads(path.read_text())
    for cell, content in zip(notebook["cells"][1:], contents):
        cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": {MIME_TYPE: content}}]
    path.write_text(json.dumps(notebook))
    return path


def test_records_of_several_cells_are_merged(tmp_path):
    path = with_records(
        tmp_path / "a.ipynb", {"schema": 1, "numbers": {"a": 1}}, {"schema": 1, "numbers": {"b": [None]}}
    )
    assert compare.read_record(path) == {"a": 1, "b": [None]}


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ([], "has recorded nothing"),
        ([{"schema": 2, "numbers": {}}], "schema 2; this optbook reads schema 1"),
        ([{"schema": 1, "numbers": {"a": 1}}, {"schema": 1, "numbers": {"a": 1}}], "records a twice"),
    ],
)
def test_records_that_cannot_be_read_are_named(tmp_path, contents, said):
    with pytest.raises(ValueError, match=said):
        compare.read_record(with_records(tmp_path / "a.ipynb", *contents))


def test_a_name_is_recorded_once_in_a_kernel(tmp_path):
    again = "record(total=0)"
    path = write_notebook(tmp_path / "a.ipynb", RECORD, "record(other=1)", again)
    (run,) = compare.sweep(path, {"number": [3]}, tmp_path / "runs")
    assert run.error == "code cell 5: ValueError: total is recorded already; a name is recorded once in a notebook."
    assert run.record == {"total": 3, "name": "a", "other": 1}


def test_a_cell_that_is_run_again_in_jupyterlab_may_record_again(monkeypatch):
    module = sys.modules["optbook.compare._record"]  # the package's name for it is the function's
    monkeypatch.setattr(module, "_recorded", {})
    for cell, count, refused in [("one", 1, False), ("one", 1, True), ("one", 2, False), ("two", 3, True)]:
        monkeypatch.setattr(module, "_executing_cell", lambda at=(cell, count): at)
        with pytest.raises(ValueError, match="recorded already") if refused else contextlib.nullcontext():
            compare.record(loss=1.0)


@pytest.mark.parametrize("metadata", [{"cellId": "one"}, {"colab": {"cell_id": "one"}}])
def test_jupyterlab_and_colab_say_which_cell_it_is(monkeypatch, metadata):
    shell = types.SimpleNamespace(get_parent=lambda: {"metadata": metadata}, execution_count=3)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert sys.modules["optbook.compare._record"]._executing_cell() == ("one", 3)


# Sweeps


def test_every_combination_is_run_and_kept_under_its_parameters(finished):
    notebook, folder, found, calls = finished
    assert [(run.path.name, run.state, run.record) for run in found] == [
        ("name=a,number=3.ipynb", "complete", {"total": 3, "name": "a"}),
        ("name=a,number=4.ipynb", "complete", {"total": 6, "name": "a"}),
        ("name=b,number=3.ipynb", "complete", {"total": 3, "name": "b"}),
        ("name=b,number=4.ipynb", "complete", {"total": 6, "name": "b"}),
    ]
    assert compare.runs(folder) == found
    assert made(notebook.parent) == ["a 3", "a 4", "b 3", "b 4"]
    assert sorted(str(run.path) for run, _, _ in calls) == [str(run.path) for run in found]
    assert [counts for _, *counts in calls] == [[1, 4], [2, 4], [3, 4], [4, 4]]


def test_as_many_kernels_as_asked_for_run_at_a_time(finished):
    """Which begins counts one up, which ends one down."""
    steps = []
    for run in finished[2]:
        first, *_, last = (cell["metadata"]["execution"] for cell in json.loads(run.path.read_text())["cells"])
        steps += [(first["iopub.status.busy"], 1), (last["iopub.status.idle"], -1)]
    assert max(itertools.accumulate(step for _, step in sorted(steps))) == 2


def test_kernels_side_by_side_share_a_gpu(finished):
    assert all("0.375" in run.path.read_text() for run in finished[2])


def test_a_run_tells_what_it_took(finished):
    _, _, found, _ = finished
    for run in found:
        assert run.last_cell == 5 and run.error is None
        assert 20e6 < run.peak_memory < 1e9
        assert 0 < run.seconds < 120


def test_a_run_names_no_folder_of_this_machine(finished):
    notebook, _, found, _ = finished
    for run in found:
        assert notebook.parent.name not in run.path.read_text()


def test_a_finished_sweep_runs_nothing_and_loads_nothing(finished):
    """Neither Keras nor JAX, nor what executes notebooks: the answer shall come at once."""
    notebook, folder, found, _ = finished
    before = [(run.path.read_text(), made(notebook.parent)) for run in found]
    code = "import sys\nfrom optbook.cli import main\ntry: main()\nexcept SystemExit as end: print(int(end.code))\n"
    code += "print(*sys.modules)"
    settings = ["--set", "number=4,3", "--set", "name=a,b", "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", str(notebook), *settings], capture_output=True, text=True
    )
    *_, said, code, modules = done.stdout.splitlines()
    assert said.startswith("4 of 4 runs are complete") and code == "0"
    assert not {"keras", "jax", "numpy", "nbformat", "papermill", "distributed"} & set(modules.split())
    assert [(run.path.read_text(), made(notebook.parent)) for run in found] == before


def test_only_what_is_missing_or_changed_is_run_again(notebook, monkeypatch):
    out, settings = notebook.parent / "runs", {"number": [3, 4]}
    compare.sweep(notebook, {"number": [3]}, out)
    compare.sweep(notebook, settings, out)
    assert made(notebook.parent) == ["a 3", "a 4"]  # 3 was there

    changed = json.loads(notebook.read_text())
    changed["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "by hand"}]
    notebook.write_text(json.dumps(changed))
    compare.sweep(notebook, settings, out)
    assert made(notebook.parent) == ["a 3", "a 4"]  # outputs are not what a notebook does

    changed["cells"][2]["source"] += "\nprint('more')"
    notebook.write_text(json.dumps(changed))
    compare.sweep(notebook, {"number": [3]}, out)
    assert made(notebook.parent) == ["a 3", "a 3", "a 4"]

    monkeypatch.setattr("importlib.metadata.version", lambda name: "next")
    compare.sweep(notebook, {"number": [3]}, out)
    assert made(notebook.parent) == ["a 3", "a 3", "a 3", "a 4"]


def test_a_failed_run_keeps_what_it_did_and_the_others_go_on(tmp_path):
    notebook = write_notebook(tmp_path / "faulty.ipynb", LOG, FAULT, "print('never')")
    command = ["compare", str(notebook), "--set", "fault=error,killed,None", "--out", str(tmp_path / "runs")]
    result = CliRunner().invoke(cli.main, [*command, "--jobs", "2"])
    assert result.exit_code == 1
    assert "1 of 3 runs are complete" in result.output
    assert "failed    fault=error" in result.output and "ValueError: two lines" in result.output

    error, killed, good = compare.runs(tmp_path / "runs")
    assert (error.state, killed.state, good.state) == ("failed", "failed", "complete")
    assert error.error == "code cell 4: ValueError: two lines"
    assert killed.error == f"the kernel was killed in code cell 4, having reached {killed.peak_memory / 1e6:.0f} MB"
    assert killed.peak_memory > 256e6 > error.peak_memory
    assert (error.last_cell, killed.last_cell, good.last_cell) == (4, 4, 5)
    for run in (error, killed):
        text = run.path.read_text()
        assert "logged" in text and '"never' not in text

    CliRunner().invoke(cli.main, command)
    assert made(tmp_path) == ["a 1"] * 5  # what failed was tried again


LEAVE = """\
import sys
if fault == "sys.exit()":
    sys.exit()
if fault == "exit()":
    exit()
if fault == "sys.exit(2)":
    sys.exit(2)
"""


def test_a_notebook_that_leaves_before_it_recorded_anything_has_failed(tmp_path):
    notebook = write_notebook(tmp_path / "leaves.ipynb", LEAVE, "pass")
    faults = ["sys.exit()", "exit()", "sys.exit(2)", None]
    runs = compare.sweep(notebook, {"fault": faults}, tmp_path / "runs", jobs=2)
    assert [(run.state, run.last_cell, run.error) for run in runs] == [
        ("failed", 3, "code cell 3: it left by exit before anything was recorded"),
        ("failed", 3, "code cell 3: it left by exit before anything was recorded"),
        ("failed", 3, "code cell 3: SystemExit: 2"),
        ("complete", 4, None),
    ]


def test_a_notebook_may_leave_once_it_has_recorded(tmp_path):
    notebook = write_notebook(tmp_path / "leaves.ipynb", RECORD, LEAVE, "print('never')")
    runs = compare.sweep(notebook, {"fault": ["sys.exit()", "exit()", "sys.exit(2)"]}, tmp_path / "runs", jobs=2)
    assert [(run.state, run.last_cell) for run in runs] == [("complete", 4), ("complete", 4), ("failed", 4)]
    assert [run.record for run in runs] == [{"total": 0, "name": "a"}] * 3
    assert not any('"never' in run.path.read_text() for run in runs)


def test_a_cell_may_raise_where_its_tag_says_so(tmp_path):
    notebook = write_notebook(tmp_path / "raises.ipynb", "1 / 0", "", FAULT, RECORD)
    content = json.loads(notebook.read_text())
    content["cells"][1]["metadata"]["tags"] = ["raises-exception"]
    notebook.write_text(json.dumps(content))
    failed, good = compare.sweep(notebook, {"fault": ["error", None]}, tmp_path / "runs", jobs=2)
    assert (failed.state, failed.error) == ("failed", "code cell 5: ValueError: two lines")
    assert (good.state, good.error, good.record) == ("complete", None, {"total": 0, "name": "a"})
    assert "ZeroDivisionError" in good.path.read_text()


def test_a_long_line_takes_no_time_and_is_kept_in_part(tmp_path):
    """A cell that prints a megabyte in one line, where progress is shown by carriage returns."""
    printing = "print('begin' + number * 'x' + 'end')"
    bar = "import sys\nfor i in range(10_000):\n    print(f'\\r{i} of 10,000', end='')"
    notebook = write_notebook(tmp_path / "prints.ipynb", printing, bar)
    begun = time.monotonic()
    (run,) = compare.sweep(notebook, {"number": [3_000_000]}, tmp_path / "runs")
    assert time.monotonic() - begun < 60
    (long,), (progress,) = (cell["outputs"] for cell in json.loads(run.path.read_text())["cells"][2:])
    assert len("".join(long["text"])) < 1_001_000
    assert re.fullmatch(r"beginx+\n… 2,000,009 characters are left out …\nx+end\n", "".join(long["text"]))
    assert "".join(progress["text"]) == "9999 of 10,000"


def test_a_notebook_that_no_sweep_wrote_is_left_out(tmp_path, finished):
    _, folder, found, _ = finished
    write_notebook(tmp_path / "other.ipynb", "pass")
    (tmp_path / "broken.ipynb").write_text("{")
    (tmp_path / found[0].path.name).write_text(found[0].path.read_text())
    assert [run.record for run in compare.runs(tmp_path)] == [found[0].record]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        compare.runs(tmp_path / "nowhere")


def kernels_below(process):
    return [child for child in process.children(recursive=True) if "ipykernel" in " ".join(child.cmdline())]


def test_ctrl_c_leaves_no_kernel_and_a_folder_to_go_on_with(tmp_path):
    wait = "import subprocess, time\nif number == 2:\n    subprocess.Popen(['sleep', '60'])\n    time.sleep(60)"
    notebook = write_notebook(tmp_path / "slow.ipynb", LOG, wait)
    # A process whose parent ignores Ctrl-C, as a shell's background does, would ignore it too.
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nfrom optbook.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, "compare", str(notebook), "--set", "number=1,2,3"]
    sweep = psutil.Popen([*command, "--out", str(tmp_path / "runs")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while "a 2" not in made(tmp_path) or not any(child.name() == "sleep" for child in sweep.children(recursive=True)):
        time.sleep(0.05)
        assert sweep.poll() is None
    started = sweep.children(recursive=True)
    assert kernels_below(sweep)
    sweep.send_signal(signal.SIGINT)
    _, said = sweep.communicate(timeout=30)
    assert sweep.returncode == 130 and b"the same command goes on" in said
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive
    assert [run.state for run in compare.runs(tmp_path / "runs")] == ["complete", "missing", "missing"]
    assert not (tmp_path / "runs" / "number=2.ipynb").exists()


def test_two_sweeps_in_one_folder_share_the_work(notebook):
    values = {"number": [1, 2, 3]}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        sweeps = [pool.submit(compare.sweep, notebook, values, notebook.parent / "runs") for _ in range(2)]
        first, second = (future.result() for future in sweeps)
    assert first == second
    assert made(notebook.parent) == ["a 1", "a 2", "a 3"]


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path, monkeypatch):
    write_text = Path.write_text

    def half(path, text, **named):
        write_text(path, text[: len(text) // 2], **named)
        raise OSError("no space left")

    path = tmp_path / "a.ipynb"
    _execution.replace_text(path, "first")
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space left"):
        _execution.replace_text(path, "second")
    assert path.read_text() == "first"


def test_planning_a_run_leaves_alone_what_another_sweep_has_begun(tmp_path):
    path = tmp_path / "a.ipynb"
    for number in (1, 2):
        plan_run(path, {"parameters": {"number": number}})
    assert [(run.parameters, run.state) for run in compare.runs(tmp_path)] == [({"number": 1}, "missing")]


def test_a_cluster_with_gpus_gets_one_run_for_each(tmp_path):
    import distributed

    timed = "import time\nbegun = time.time()\ntime.sleep(0.3)\nfrom optbook.compare import record\n"
    notebook = write_notebook(tmp_path / "timed.ipynb", timed + "record(begun=begun, ended=time.time())")
    one = {"n_workers": 1, "threads_per_worker": 3, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**one, resources={"GPU": 1}) as cluster:
        found = compare.sweep(notebook, {"number": [1, 2, 3]}, tmp_path / "runs", scheduler=cluster.scheduler_address)
    times = sorted((run.record["begun"], run.record["ended"]) for run in found)
    assert all(ended < begun for (_, ended), (begun, _) in zip(times, times[1:]))


def test_runs_of_another_notebook_are_not_replaced(notebook):
    (run,) = compare.sweep(notebook, {"number": [3]}, notebook.parent / "runs")
    before = run.path.read_text()
    with pytest.raises(ValueError, match=r"runs holds runs of small\.ipynb; those of other\.ipynb need a folder"):
        compare.sweep(notebook.rename(notebook.with_name("other.ipynb")), {"number": [3]}, notebook.parent / "runs")
    assert run.path.read_text() == before


def test_a_column_of_every_table_is_no_parameter(tmp_path):
    notebook = write_notebook(tmp_path / "a.ipynb", parameters="state = 1")
    with pytest.raises(ValueError, match="a parameter cannot be called state"):
        compare.sweep(notebook, {"state": [1]}, tmp_path / "runs")


def test_a_full_disk_fails_a_run_and_not_the_sweep(notebook, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_execution, "replace_text", full)
    found = []
    (run,) = compare.sweep(notebook, {"number": [3]}, notebook.parent / "runs", progress=lambda *all: found.append(all))
    assert run.state == "missing"
    assert (found[0][0].state, found[0][0].error) == (
        "failed",
        "the worker: OSError: [Errno 28] No space left on device",
    )


def test_a_deep_temporary_folder_is_too_long_for_sockets(notebook, tmp_path, monkeypatch):
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    (run,) = compare.sweep(notebook, {"number": [3]}, notebook.parent / "runs")
    assert (run.state, run.error) == ("complete", None)


def test_a_worker_that_does_not_see_the_folder_says_so(notebook, monkeypatch):
    monkeypatch.setattr("optbook.compare._execution.begun_path", lambda path: path.parent / "elsewhere" / path.name)
    job = _execution.Job(notebook.parent / "runs" / "a.ipynb", {}, Path("going"), "", notebook.parent, 1)
    with pytest.raises(FileNotFoundError, match="workers must see the folder of the runs"):
        _execution.execute(job)


def test_an_interrupted_sweep_stops_its_runs_on_the_cluster_too(tmp_path):
    import distributed

    def interrupt(*_):
        raise KeyboardInterrupt

    notebook = write_notebook(tmp_path / "slow.ipynb", "import time\ntime.sleep(60 if number == 2 else 1)")
    pair = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    begun = time.monotonic()
    with distributed.LocalCluster(**pair) as cluster, pytest.raises(KeyboardInterrupt):
        values = {"number": [1, 2, 3]}
        compare.sweep(notebook, values, tmp_path / "runs", scheduler=cluster.scheduler_address, progress=interrupt)
    while kernels_below(psutil.Process()):
        time.sleep(0.1)
        assert time.monotonic() - begun < 55
    assert [run.state for run in compare.runs(tmp_path / "runs")][:2] == ["complete", "missing"]
