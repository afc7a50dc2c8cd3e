"""Notebooks small enough to be run by the dozen, for the tests of optbook.compare."""

import json

PARAMETERS = "number = 1\nname = 'a'  # papermill itself skips a line with a second =\nfault = None"


def write_notebook(path, *sources, parameters=PARAMETERS):
    """Writes a notebook whose first cell is tagged ``parameters``."""
    cells = [_cell(number, source) for number, source in enumerate((parameters, *sources))]
    cells[0]["metadata"]["tags"] = ["parameters"]
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def _cell(number, source):
    return {
        "cell_type": "code",
        "id": f"cell-{number}",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": source,
    }


def contents(path):
    """Outputs and record of an executed notebook, without what differs from run to run: times and memory."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kept = notebook["metadata"]["optbook"]
    return [cell.get("outputs") for cell in notebook["cells"]], kept["parameters"], kept["state"]
