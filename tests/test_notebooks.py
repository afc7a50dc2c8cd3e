"""What must hold of every committed notebook, so that nbval has something to compare."""

import ast
import json
import re
import statistics
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import refresh_notebooks  # noqa: E402
import sync_cells  # noqa: E402

CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMPARED_CELLS = json.loads((ROOT / "tests" / "compared_cells.json").read_text())  # a floor: raise it, never lower it
MAX_KB, MAX_LINES, MAX_90TH, MEDIAN = 500, 40, 20, (1, 8)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_class_cell(cell):
    return cell.source.startswith(sync_cells.MARK)


def text_of(output):
    return output.get("text", "") or output.get("data", {}).get("text/plain", "")


def compared(cell):
    """Does nbval compare this cell? It needs an execution count, a text output, and no marker that skips it."""
    skipped = re.search(r"#\s*NBVAL_(IGNORE_OUTPUT|SKIP)", cell.source) or cell.metadata.get("tags", []).count(
        "nbval-skip"
    )
    return bool(cell.execution_count and not skipped and any(text_of(output).strip() for output in cell.outputs))


def problems(notebook):
    """Every broken rule, a line each."""
    cells, importing = code_cells(notebook), None
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "execution counts are not 1..n"
    for number, cell in enumerate(cells, 1):
        where = f"code cell {number}"
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"{where}: an error or stderr among the outputs"
            data = output.get("data", {})
            if "image/png" in data or "optbook-view" in data.get("text/html", ""):
                follower = cells[number] if number < len(cells) else None
                if follower is None or not any(re.search(r"\d|True|equal", text_of(o)) for o in follower.outputs):
                    yield f"{where}: a figure without its numbers in the next code cell"
        tree = ast.parse(re.sub(r"^([ ]*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE))
        if number > 1:
            if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)):
                if importing is not None:
                    yield f"{where}: an import, but the setup cell and code cell {importing} have them already"
                importing = number
            if re.search(r"^\s*[%!]", cell.source, flags=re.MULTILINE):
                yield f"{where}: a magic or shell command outside the setup cell"
        if re.search(r"NBVAL_IGNORE_OUTPUT|NBVAL_SKIP|nbval-(ignore-output|skip)", cell.source + str(cell.metadata)):
            yield f"{where}: its output is kept from being compared"
    if cells and cells[0].source != sync_cells.SETUP:
        yield "the first code cell is not the common setup cell (tools/sync_cells.py)"
    lengths = [len(cell.source.splitlines()) for cell in cells if not is_class_cell(cell)]
    if lengths:
        if max(lengths) > MAX_LINES:
            yield f"a cell has {max(lengths)} lines, more than {MAX_LINES}"
        if sorted(lengths)[int(0.9 * (len(lengths) - 1))] > MAX_90TH:
            yield f"a tenth of the cells have more than {MAX_90TH} lines"
        if not MEDIAN[0] <= statistics.median(lengths) <= MEDIAN[1]:
            yield f"the median cell has {statistics.median(lengths)} lines, not {MEDIAN[0]} to {MEDIAN[1]}"
    for cell in filter(is_class_cell, cells):
        name = cell.source.partition("\n")[0].removeprefix(sync_cells.MARK)
        if ast.dump(ast.parse(cell.source)) != ast.dump(ast.parse(sync_cells.package_source(name))):
            yield f"{name} in the chapter is not the package's (tools/sync_cells.py)"


def test_there_are_chapters():
    assert [path.name[:2] for path in CHAPTERS] == [f"{number:02}" for number in range(len(CHAPTERS))]
    assert len(CHAPTERS) >= 7


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_the_rules(path):
    assert list(problems(nbformat.read(path, as_version=4))) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_small_and_stable(path):
    assert path.stat().st_size <= MAX_KB * 1024
    notebook = nbformat.read(path, as_version=4)
    assert refresh_notebooks.stable(notebook) == notebook, "metadata that changes from run to run: make refresh"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_fewer_cells_are_compared(path):
    count = sum(compared(cell) for cell in code_cells(nbformat.read(path, as_version=4)))
    assert count >= COMPARED_CELLS[path.stem]


def chapter(*cells):
    """A small notebook that keeps every rule, with the given cells after its setup cell."""
    setup = nbformat.v4.new_code_cell(sync_cells.SETUP)
    notebook = nbformat.v4.new_notebook(cells=[setup, *cells])
    for number, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = number
    return notebook


def cell(source, *outputs):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs))


def printed(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


FIGURE = nbformat.v4.new_output("execute_result", data={"image/png": "", "text/plain": "<Figure>"}, execution_count=2)
VIEW = nbformat.v4.new_output(
    "execute_result", data={"text/html": '<div class="optbook-view">', "text/plain": ""}, execution_count=2
)
NAME = "optbook.masks.padding_mask"
CLASS_CELL = f"{sync_cells.MARK}{NAME}\n{sync_cells.package_source(NAME)}"


def test_a_good_chapter_has_no_problems():
    good = chapter(
        cell("import json"), cell("plot.lines({})", FIGURE), cell("print(1)", printed("1\n")), cell(CLASS_CELL)
    )
    assert list(problems(good)) == []


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (cell("plot.lines({})", FIGURE), "a figure without its numbers"),
        (cell("optbook.view(record)", VIEW), "a figure without its numbers"),
        (cell("print(1)", nbformat.v4.new_output("stream", name="stderr", text="!")), "an error or stderr"),
        (cell("1 / 0", nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])), "an error or stderr"),
        (cell("import os"), "an import, but"),
        (cell("%pip install optbook"), "a magic or shell command"),
        (cell("!ls"), "a magic or shell command"),
        (cell("# NBVAL_IGNORE_OUTPUT\nprint(1)"), "kept from being compared"),
        (cell("\n".join(["x = 1"] * 41)), "a cell has 41 lines"),
        (cell(CLASS_CELL.replace("axis=1", "axis=0")), "is not the package's"),
    ],
)
def test_each_rule_bites(bad, said):
    assert any(said in problem for problem in problems(chapter(cell("import json"), bad)))


def test_missing_and_misordered_execution_counts_are_found():
    for count in (None, 7):
        notebook = chapter(cell("print(1)", printed("1\n")))
        notebook.cells[-1].execution_count = count
        assert "execution counts are not 1..n" in list(problems(notebook))


def test_a_changed_setup_cell_is_found():
    notebook = chapter()
    notebook.cells[0].source += "\nimport os"
    assert any("setup cell" in problem for problem in problems(notebook))


def test_class_cells_stand_in_their_chapters():
    sources = "\n".join(cell.source for path in CHAPTERS for cell in code_cells(nbformat.read(path, as_version=4)))
    for name in (
        "layers.TokenAndPositionEmbedding",
        "layers.CausalSelfAttention",
        "layers.DecoderLayer",
        "masks.causal_mask",
        "masks.padding_mask",
        "masks.combine_masks",
        "tokens.byte_alphabet",
        "tokens.tokenize_batch",
        "backbone.OPTBackbone",
    ):
        assert f"{sync_cells.MARK}optbook.{name}\n" in sources
