"""The folder of a sweep: one executed notebook for each run, which holds all that is known of it.

In the hidden folder ``.optbook`` beside them are the notebooks of runs that are planned or begun, and their locks.
"""

import dataclasses
import json
from pathlib import Path

from optbook.compare._record import read_notebook, recorded_in

HIDDEN = ".optbook"
COMPLETE, FAILED, MISSING = "complete", "failed", "missing"
OF_THE_RUN = ("seconds", "peak_memory", "last_cell", "error")
COLUMNS = ("run", "state", *OF_THE_RUN)  # that every table has


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes
    ----------
    path : Path
        Its executed notebook; there is none yet if it is missing.
    parameters : dict
        The values it was given.
    state : str
        "complete", "failed", or "missing" for one that is planned, was interrupted, or still runs.
    error : str or None
        Why it failed, in a line.
    last_cell : int or None
        The last code cell that was begun, counted from 1 in the executed notebook.
    peak_memory : int or None
        The most bytes its kernel held in main memory, looked at ten times a second.
    seconds : float or None
        From the start of its kernel to the end.
    record : dict
        What it recorded, a failed run until it failed.
    """

    path: Path
    parameters: dict
    state: str
    error: str | None = None
    last_cell: int | None = None
    peak_memory: int | None = None
    seconds: float | None = None
    record: dict = dataclasses.field(default_factory=dict)


def runs(folder):
    """The runs of a folder, sorted by name.

    Parameters
    ----------
    folder : path
        Where `sweep` wrote.

    Returns
    -------
    list of Run
        Notebooks that no sweep wrote are left out.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; a sweep writes it.")
    names = {path.name for place in (folder, folder / HIDDEN) for path in place.glob("*.ipynb")}
    found = (read_run(folder / name) for name in sorted(names))
    return [run for run in found if run is not None]


def read_run(path):
    """The `Run` whose executed notebook is, or will be, at ``path``; None if no sweep knows of it."""
    for place, finished in ((path, True), (begun_path(path), False)):
        notebook = _read(place)
        if notebook is None:
            continue
        kept = notebook["metadata"]["optbook"]
        if not finished:
            return Run(path, kept["parameters"], MISSING)
        fields = {name: kept[name] for name in ("state", *OF_THE_RUN)}
        return Run(path, kept["parameters"], record=recorded_in(notebook, path), **fields)
    return None


def begun_path(path):
    """Where the notebook of a run is while it is planned or runs."""
    return path.parent / HIDDEN / path.name


def is_complete(path, identity):
    """Is this run there, with the parameters, the notebook and the package version of ``identity``?"""
    kept = _kept(path)
    return kept.get("state") == COMPLETE and all(kept.get(name) == value for name, value in identity.items())


def require_same_notebook(path, identity):
    """Raises ValueError if the run at ``path``, there or begun, is one of another notebook."""
    for place in (path, begun_path(path)):
        other = _kept(place).get("name")
        if other not in (None, identity["name"]):
            raise ValueError(
                f"{path.parent} holds runs of {other}; those of {identity['name']} need a folder of their own (--out)."
            )


def _read(path):
    """A notebook that a sweep wrote, or None."""
    try:
        notebook = read_notebook(path)
    except (FileNotFoundError, ValueError):
        return None
    return notebook if "optbook" in notebook["metadata"] else None


def _kept(path):
    """What a sweep wrote into a notebook besides its cells; empty if there is no such notebook."""
    notebook = _read(path)
    return notebook["metadata"]["optbook"] if notebook else {}


def plan_run(path, identity):
    """Makes a run that is not begun yet visible as missing."""
    begun_path(path).parent.mkdir(parents=True, exist_ok=True)
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"optbook": identity}, "cells": []}
    try:
        with begun_path(path).open("x", encoding="utf-8") as file:  # never over the notebook of one that runs
            file.write(json.dumps(notebook))
    except FileExistsError:
        pass
