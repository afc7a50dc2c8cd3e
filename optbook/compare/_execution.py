"""One run: a notebook with its parameters, in a kernel of its own, here or on a worker of a Dask cluster."""

import dataclasses
import os
from pathlib import Path

import filelock
import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from optbook import notebooks
from optbook._files import replace_text
from optbook.compare._record import recorded_in
from optbook.compare._runs import COMPLETE, FAILED, begun_path, is_complete, read_run


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker must know to make one run.

    Attributes
    ----------
    path : Path
        Where the executed notebook goes.
    identity : dict
        Parameters, name and hash of the notebook, version of the package: a run that differs in one of them is out of
        date.
    going : Path
        A file that is there as long as the sweep goes on; without it no kernel of the sweep stays alive.
    source : str
        The text of the notebook: what runs is what was checked, though the file be edited meanwhile.
    folder : Path
        Where the kernel works: the notebook's folder.
    kernels : int
        How many run at a time where this one does, and share a GPU if there is one.
    """

    path: Path
    identity: dict
    going: Path
    source: str = dataclasses.field(repr=False)
    folder: Path
    kernels: int


def execute(job):
    """Makes one run, unless it is there already, and puts it in its place, complete or failed.

    Nothing that a notebook does, or that is done to its kernel, raises here.

    Returns
    -------
    Run
        It is missing if its sweep was stopped.
    """
    try:
        with lock(job):
            if is_complete(job.path, job.identity):
                begun_path(job.path).unlink(missing_ok=True)
            elif job.going.exists():
                _run(job)
    except filelock.Timeout:  # stopped while another sweep made this run
        pass
    return read_run(job.path)


def lock(job):
    """Held by whoever writes a run; a second sweep that wants the same run waits, and then finds it done.

    It is the system's lock of an open file, which ends with its process however that ends: none is ever left over.
    """
    path = begun_path(job.path).with_suffix(".lock")
    if not path.parent.is_dir():  # it was made before any job was given away
        raise FileNotFoundError(
            f"there is no {job.path.parent} on this machine; workers must see the folder of the runs"
        )
    return filelock.FileLock(path).acquire(poll_interval=0.1, cancel_check=lambda: not job.going.exists())


def end(job, done):
    """Writes into the notebook of a begun run how it ended, and moves it to its place."""
    notebook = done.notebook
    notebook.metadata["optbook"] = job.identity | {
        "state": FAILED if done.problem else COMPLETE,
        "error": done.problem,
        "last_cell": done.last_cell or None,
        "peak_memory": round(done.peak_mb * 1e6) or None,
        "seconds": round(done.seconds, 3) or None,
    }
    replace_text(begun_path(job.path), nbformat.writes(notebook) + "\n")
    os.replace(begun_path(job.path), job.path)


def give_up(job, problem):
    """Lets a run fail that whoever was to make it could not, unless it is complete by now."""
    with lock(job):
        if not is_complete(job.path, job.identity):
            end(job, notebooks.Executed(nbformat.read(begun_path(job.path), as_version=4), problem=problem))
    return read_run(job.path)


def _run(job):
    notebook = load_notebook_node(nbformat.reads(job.source, as_version=4))
    notebook = parameterize_notebook(notebook, job.identity["parameters"], kernel_name="python3", language="python")
    notebook.metadata["optbook"] = job.identity

    def save(*_):
        replace_text(begun_path(job.path), nbformat.writes(notebook))

    # JAX takes three quarters of a GPU for each process; kernels side by side get their parts of that.
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.75 / job.kernels:.3f}"} if job.kernels > 1 else {}
    done = notebooks.execute_in(job.folder, notebook, save, environment=share, goes_on=job.going.exists)
    if not job.going.exists():
        return
    if done.exited:
        done.problem = None if recorded_in(notebook, job.path) else f"{done.problem} before anything was recorded"
    end(job, done)
