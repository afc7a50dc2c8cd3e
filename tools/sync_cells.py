"""Writes the package's own classes and the common setup cell into the notebooks.

    python tools/sync_cells.py

A code cell whose first line is ``# The package's own source: optbook.layers.DecoderLayer`` gets that class or function,
without docstrings and decorators. The first code cell of every chapter is the setup cell below.
"""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import nbformat
from sync_badges import repository

from optbook import machine, notebooks

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
MARK = "# The package's own source: "
# On Colab, once, what is not there or too old is installed, and nothing else is touched: numpy is loaded before the
# first cell, jax is built for Colab's GPU, keras-hub would bring TensorFlow. So nothing needs a restart.
COLAB = " ".join(f"{name}=={machine.locked_versions()[name]}" for name in ("keras", "keras-hub", "papermill"))
SETUP = f"""\
import importlib.util
import sys

if importlib.util.find_spec("optbook") is None:
    assert "google.colab" in sys.modules, "optbook is not installed for this kernel: see the README, or `make lab`"
    %pip install --quiet --no-deps {COLAB} https://github.com/{repository()}/archive/main.zip

import optbook  # first: it chooses Keras's JAX backend and keeps TensorFlow away

from pathlib import Path

import jax
import keras
import keras_hub
import numpy as np
from keras import layers, ops
from optbook import checks, masks, plot"""


def package_source(name):
    """The source of a class or function of the package, as the notebooks show it: no decorators, no docstrings."""
    module, _, attribute = name.rpartition(".")
    source = textwrap.dedent(inspect.getsource(getattr(importlib.import_module(module), attribute)))
    tree = ast.parse(source)
    lines = source.splitlines()
    dropped = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        if node is tree.body[0]:
            dropped.update(range(1, node.lineno))  # its decorators
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            end = docstring.end_lineno
            if end < len(lines) and not lines[end].strip():  # and the blank line after it
                end += 1
            dropped.update(range(docstring.lineno, end + 1))
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in dropped)


def sync(notebook):
    """Brings the setup cell and the class cells of a notebook up to date; True if anything changed."""
    changed = False
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        first_line = cell.source.partition("\n")[0]
        if cell is code[0]:
            wanted = SETUP
        elif first_line.startswith(MARK):
            wanted = f"{first_line}\n{package_source(first_line.removeprefix(MARK).strip())}"
        else:
            continue
        changed = changed or cell.source != wanted
        cell.source = wanted
    return changed


def main():
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if sync(notebook):
            notebooks.write(notebook, path)
            print(f"{path.name}: brought up to date")


if __name__ == "__main__":
    main()
