"""One run: a notebook with its parameters, in a kernel of its own, here or on a worker of a Dask cluster."""

import dataclasses
import logging
import os
import signal
import tempfile
import textwrap
import time
from pathlib import Path

import filelock
import nbclient
import nbformat
import papermill
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from papermill.iorw import papermill_io
from traitlets.config import Config

from optbook._files import replace_text
from optbook.compare.runs import COMPLETE, FAILED, begun_path, is_complete, read_run
from optbook.notebooks import MemoryWatch

ENGINE = "optbook"
WHOLE = "optbook:"  # before a path: papermill's saves go beside it and are renamed
LONGEST_PLACE = 70  # bytes: the system allows a socket's path about 104
START_TIMEOUT = 300  # seconds: many kernels may start at once, and one that died is noticed anyway

_stopped = set()  # sweeps that were interrupted
logging.getLogger("papermill").addHandler(logging.NullHandler())  # what it says of a failure is told in `Run.error`


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker must know to make one run.

    Attributes
    ----------
    sweep : str
        Which sweep it belongs to, for `stop`.
    source : str
        The text of the notebook: what runs is what was checked, though the file be edited meanwhile.
    folder : Path
        Where the kernel works: the notebook's folder.
    path : Path
        Where the executed notebook goes.
    identity : dict
        Parameters, name and hash of the notebook, version of the package: a run that differs in one of them is out of
        date.
    kernels : int
        How many run at a time where this one does, and share a GPU if there is one.
    """

    sweep: str
    source: str = dataclasses.field(repr=False)
    folder: Path
    path: Path
    identity: dict
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
            else:
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
    return filelock.FileLock(path).acquire(poll_interval=0.1, cancel_check=lambda: job.sweep in _stopped)


def stop(sweep):
    """Kills the kernels of a sweep in this process and starts no more of them."""
    _stopped.add(sweep)


def end(job, error, last_cell=None, peak_memory=None, seconds=None):
    """Writes into the notebook of a begun run how it ended, and moves it to its place."""
    begun = begun_path(job.path)
    notebook = nbformat.read(begun, as_version=4)
    if "papermill" in notebook.metadata:
        notebook.metadata.papermill |= {"input_path": None, "output_path": job.path.name}  # no folders of this machine
    notebook.metadata["optbook"] = job.identity | {
        "state": FAILED if error else COMPLETE,
        "error": error,
        "last_cell": last_cell,
        "peak_memory": peak_memory,
        "seconds": seconds,
    }
    replace_text(begun, nbformat.writes(notebook) + "\n")
    os.replace(begun, job.path)


def _run(job):
    begun = begun_path(job.path)
    notebook = nbformat.reads(job.source, as_version=4)
    notebook.metadata["optbook"] = job.identity
    replace_text(begun, nbformat.writes(notebook))
    unformatted = str(begun).replace("{", "{{").replace("}", "}}")  # papermill fills in what stands in braces
    watch = _Watch(job.sweep)
    started, failure = time.perf_counter(), None
    try:
        papermill.execute_notebook(
            unformatted,
            WHOLE + unformatted,
            job.identity["parameters"],
            engine_name=ENGINE,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=START_TIMEOUT,
            watch=watch,
            folder=job.folder,
            env=_environment(job.kernels),
        )
    except Exception as error:  # of the notebook, its kernel, the disk: whatever it is, the other runs go on
        failure = error
    seconds = time.perf_counter() - started
    if job.sweep in _stopped:
        return
    cell = _cells_begun(begun)
    end(job, failure and _explained(failure, cell, watch.peak_mb), cell, round(watch.peak_mb * 1e6), round(seconds, 3))


def _environment(kernels):
    """JAX takes three quarters of a GPU for each process; kernels side by side get their parts of that."""
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.75 / kernels:.3f}"} | os.environ if kernels > 1 else dict(os.environ)


def _cells_begun(path):
    cells = nbformat.read(path, as_version=4).cells
    return sum(
        cell.cell_type == "code" and bool(cell.metadata.get("papermill", {}).get("start_time")) for cell in cells
    )


def _explained(failure, cell, peak_mb):
    """Why a run failed, in one line."""
    where = f"code cell {cell}" if cell else "the start of the kernel"
    if isinstance(failure, papermill.PapermillExecutionError):
        said = f"{where}: {failure.ename}: {failure.evalue}"
    elif isinstance(failure, nbclient.exceptions.DeadKernelError) or "Kernel died" in str(failure):
        said = f"the kernel was killed in {where}, having reached {peak_mb:.0f} MB"
    else:
        said = f"{where}: {type(failure).__name__}: {failure}"
    return textwrap.shorten(said, 300)


class _Watch(MemoryWatch):
    """Also kills the kernel, and what it has started, when its sweep is stopped."""

    def __init__(self, sweep):
        super().__init__(client=None)
        self.sweep = sweep

    def look(self, kernel):
        super().look(kernel)
        if self.sweep in _stopped:
            os.killpg(kernel.pid, signal.SIGKILL)  # a kernel leads a process group of its own


class _Engine(Engine):
    """papermill's engine, with the kernel under our eyes and reached through files: ports can be taken by others."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, watch, folder, env, start_timeout, **_):
        place = tempfile.gettempdir()
        if len(os.fsencode(place)) > LONGEST_PLACE:
            place = "/tmp"
        with tempfile.TemporaryDirectory(prefix="optbook-", dir=place, ignore_cleanup_errors=True) as sockets:
            manager = {"transport": "ipc", "connection_file": str(Path(sockets) / "kernel.json")}
            watch.client = PapermillNotebookClient(
                nb_man,
                kernel_name=kernel_name,
                startup_timeout=start_timeout,
                timeout=None,  # a cell may take hours
                extra_arguments=["--log-level=50"],  # no word of the interrupt by which an idle kernel is ended
                coalesce_streams=True,  # otherwise what one cell prints is cut at random
                resources={"metadata": {"path": str(folder)}},
                config=Config(KernelManager=manager),
            )
            with watch:
                watch.client.execute(env=env)


class _WholeFiles:
    """Saves notebooks so that a process killed while it saves leaves no half one."""

    @staticmethod
    def write(text, path):
        replace_text(path.removeprefix(WHOLE), text)

    @staticmethod
    def pretty_path(path):
        return path.removeprefix(WHOLE)


papermill_engines.register(ENGINE, _Engine)
papermill_io.register(WHOLE, _WholeFiles)
