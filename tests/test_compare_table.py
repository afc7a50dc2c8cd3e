"""Runs of a folder as one table: what is in it, as CSV, as a page, as a figure."""

import csv
import html.parser
import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from optbook import cli
from optbook.compare import Run, report, table

MODULE = importlib.import_module("optbook.compare._table")  # the package's `table` is the function


def recorded(quality, weights, **more):
    return {
        "weights_bytes": weights,
        "bits_per_byte": quality,
        "writing_tokens_per_second": 1000.0 / weights,
        "measured_generating_megabytes": 500.0 + weights,
        "num_layers": 2,
        "heads": {"induction": {"layer": 1, "score": quality / 10}},
        "continuations": ["one, two", "«three»"],
        **more,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of four complete runs, one that failed and one that is missing."""
    made = [
        Run(
            tmp_path / f"dtype={dtype},preset={preset}.ipynb",
            {"dtype": dtype, "preset": preset, "seed": 0},
            "complete",
            peak_memory=600_000_000,
            seconds=12.25,
            record=recorded(quality, weights),
        )
        for preset, dtype, quality, weights in (
            ("a", "float32", 1.25, 4),
            ("a", "bfloat16", 1.5, 2),
            ("b", "float32", 1.0, 8),
            ("b", "bfloat16", 1.125, 4),
        )
    ]
    failed = {"dtype": "float32", "preset": "<c>", "seed": 0}
    made.append(
        Run(tmp_path / "dtype=float32,preset=c.ipynb", failed, "failed", "ValueError: no <c>", 3, 9, 1.0, {"early": 1})
    )
    made.append(
        Run(tmp_path / "dtype=float32,preset=d.ipynb", {"dtype": "float32", "preset": "d", "seed": 0}, "missing")
    )
    for run in made[:-1]:
        run.path.write_text("{}")
    monkeypatch.setattr(MODULE, "runs", lambda folder: made)
    return tmp_path


class Page(html.parser.HTMLParser):
    """Cells of the table's lines, addresses of links and pictures, and the tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.lines, self.links, self.sources, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")
        self.links += [attributes["href"]] if "href" in attributes else []
        self.sources += [attributes["src"]] if "src" in attributes else []

    def handle_data(self, data):
        if self.lines and self.lines[-1]:
            self.lines[-1][-1] += data.strip("\n")


def test_rows_have_the_same_columns_in_the_same_order(folder):
    found = table(folder)
    assert {tuple(row) for row in found.rows} == {tuple(found.rows[0])}
    assert list(found.rows[0])[:5] == ["run", "state", "dtype", "preset", "seed"]
    assert list(found.rows[0])[-4:] == ["seconds", "peak_memory", "last_cell", "error"]
    assert found.parameters == ("dtype", "preset", "seed")
    assert [row["state"] for row in found.rows] == ["complete"] * 4 + ["failed", "missing"]
    assert len(found.complete) == 4


def test_what_a_run_has_not_got_is_none_and_what_it_has_is_kept(folder):
    *_, failed, missing = table(folder).rows
    assert (failed["early"], failed["error"], failed["last_cell"]) == (1, "ValueError: no <c>", 3)
    assert failed["bits_per_byte"] is None
    assert missing["preset"] == "d"
    assert {value for name, value in missing.items() if name not in ("run", "state", "dtype", "preset", "seed")} == {
        None
    }


def test_dictionaries_become_columns_and_lists_stay(folder):
    first = table(folder).rows[0]
    assert first["heads.induction.layer"] == 1
    assert first["heads.induction.score"] == 0.125
    assert "heads" not in first
    assert first["continuations"] == ["one, two", "«three»"]


def test_columns_to_be_compared_are_those_that_differ(folder):
    found = table(folder)
    assert found.varied == ["dtype", "preset"]
    figure = {"bits_per_byte", "writing_tokens_per_second", "measured_generating_megabytes"}
    assert set(found.compared[2:5]) == figure
    assert "weights_bytes" in found.compared
    assert "heads.induction.score" in found.compared
    assert not {"num_layers", "heads.induction.layer", "continuations", "seed", "early"} & set(found.compared)
    assert found.shared["num_layers"] == 2
    assert found.shared["seed"] == 0
    assert not set(found.shared) & set(found.compared)


def test_a_record_overwrites_no_parameter_and_no_column(tmp_path, monkeypatch):
    record = {"seed": 2, "seconds": 1.5, "state": "good", "run": 7}
    monkeypatch.setattr(
        MODULE, "runs", lambda folder: [Run(tmp_path / "a", {"seed": 1}, "complete", seconds=9.0, record=record)]
    )
    found = table(tmp_path)
    (row,) = found.complete
    assert (row["seed"], row["seconds"], row["run"]) == (1, 9.0, "a")
    assert {name: row[f"{name} (recorded)"] for name in record} == record
    report(tmp_path)


def test_csv_holds_all_of_it(folder):
    report(folder)
    lines = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text(encoding="utf-8"))))
    assert len(lines) == 6
    assert float(lines[2]["bits_per_byte"]) == 1.0
    assert lines[0]["continuations"] == '["one, two", "«three»"]'
    assert lines[4]["error"] == "ValueError: no <c>"
    assert lines[5]["bits_per_byte"] == ""


def test_the_page_links_runs_and_names_errors(folder):
    path = report(folder)
    page = Page(path.read_text(encoding="utf-8"))
    assert path == folder / "report.html"
    assert "dtype%3Dfloat32%2Cpreset%3Da.ipynb" in page.links
    assert len([link for link in page.links if link.endswith(".ipynb")]) == 5  # there is no file of the missing one
    header, *lines = page.lines
    assert header[:4] == ["run", "state", "dtype", "preset"]
    assert [line[1] for line in lines if len(line) > 1] == ["complete"] * 4 + ["failed", "missing"]
    assert ["ValueError: no <c>"] in lines
    assert [line[0] for line in lines if len(line) > 1] == ["run 1", "run 2", "run 3", "run 4", "run 5", "6"]
    by_name = dict(zip(header, lines[0]))
    assert (by_name["bits per byte"], by_name["peak memory"], by_name["weights bytes"]) == ("1.25", "600 MB", "4")
    assert "4 complete, 1 failed, 1 missing" in path.read_text(encoding="utf-8")


def test_the_page_loads_nothing(folder):
    page = Page(report(folder).read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert [source.partition(",")[0] for source in page.sources] == ["data:image/png;base64"]
    assert not any(":" in link for link in page.links)


@pytest.mark.parametrize("value", ["from $5 to $6", r"$\frac$ _x^2", "_hidden"])
def test_values_of_every_spelling_are_reported(tmp_path, monkeypatch, value):
    names = {"preset": value, "prompt": "$x$"}, {"preset": "b", "prompt": value}
    made = [Run(tmp_path / f"{i}.ipynb", name, "complete", record=recorded(i + 1, 4)) for i, name in enumerate(names)]
    monkeypatch.setattr(MODULE, "runs", lambda folder: made)
    result = CliRunner().invoke(cli.main, ["compare", "--report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (tmp_path / "report.csv").read_text(encoding="utf-8").index(value)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert value in page.lines[1] and len(page.sources) == 1
    assert [text.get_text() for text in table(tmp_path).figure().legends[0].get_texts()] == [value, "b", "$x$", value]


def test_files_are_replaced_whole(folder):
    report(folder)
    first = (folder / "report.html").read_text(encoding="utf-8")
    report(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == first
    assert not list(folder.glob(".partial*"))


def test_the_figure_joins_the_dtypes_of_a_preset(folder):
    figure = table(folder).figure()
    quality_by_speed, quality_by_memory, speed_by_memory = figure.axes
    lines = [line for line in quality_by_speed.lines if line.get_marker() == "None"]
    assert [line.get_xydata().tolist() for line in lines] == [
        [[250.0, 1.25], [500.0, 1.5]],
        [[125.0, 1.0], [250.0, 1.125]],
    ]
    points = [line for line in quality_by_memory.lines if line.get_marker() != "None"]
    assert {tuple(line.get_xydata()[0]) for line in points} == {(504, 1.25), (502, 1.5), (508, 1.0), (504, 1.125)}
    assert [line.get_marker() for line in points] == ["o", "s", "o", "s"]
    assert "less is better" in quality_by_speed.get_ylabel()
    assert "less is better" not in speed_by_memory.get_ylabel()


def test_other_records_make_a_page_without_a_figure(tmp_path, monkeypatch):
    made = [Run(tmp_path / f"rate={r}.ipynb", {"rate": r}, "complete", record={"loss": r * 2}) for r in (0.5, 1.5)]
    monkeypatch.setattr(MODULE, "runs", lambda folder: made)
    assert table(tmp_path).figure() is None
    page = Page(report(tmp_path).read_text(encoding="utf-8"))
    assert "img" not in page.tags
    assert page.lines[1][:4] == ["1", "complete", "0.5", "1"]


def test_runs_that_all_failed_make_a_page(tmp_path, monkeypatch):
    made = [Run(tmp_path / "rate=1.ipynb", {"rate": 1}, "failed", "MemoryError: too large", None, None, None)]
    monkeypatch.setattr(MODULE, "runs", lambda folder: made)
    assert "MemoryError: too large" in report(tmp_path).read_text(encoding="utf-8")
    assert (table(tmp_path).compared, table(tmp_path).shared) == ([], {})


def test_an_empty_folder_is_refused_in_a_line(tmp_path):
    with pytest.raises(ValueError, match="there are no runs in"):
        table(tmp_path)
    with pytest.raises(ValueError, match="there are no runs in"):
        report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_goes_with_its_process():
    code = "from optbook import compare\nf = compare.temporary_folder()\n(f / 'a').write_text('b')\nprint(f)"
    folder = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert Path(folder).is_absolute()
    assert not Path(folder).exists()
