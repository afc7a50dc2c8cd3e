"""A sweep: one notebook, run once for each combination of values, several at a time, here or on a Dask cluster."""

import concurrent.futures
import contextlib
import importlib.metadata
import json
import tempfile
from pathlib import Path

from optbook.compare._record import read_notebook
from optbook.compare._runs import FAILED, HIDDEN, Run, is_complete, plan_run, read_run, require_same_notebook
from optbook.compare._values import file_name, product, source_hash

CONNECTION_TIMEOUT = "10s"


def sweep(notebook, values, out, jobs=1, scheduler=None, progress=lambda *_: None):
    """Runs a notebook with every combination of values, except for what is complete already.

    Each run becomes an executed notebook in ``out``, named by its parameters, that appears when the run has ended. It
    is made again if it failed, or if the notebook or the version of optbook has changed since. Several sweeps may
    write into one folder: no run is made twice.

    Parameters
    ----------
    notebook : path
        Has a cell tagged ``parameters`` that sets every name. Kernels work in its folder.
    values : dict
        A list of JSON values for each name.
    out : path
        The folder of the runs; made if it is not there.
    jobs : int
        How many kernels run here at a time, each a process of its own.
    scheduler : str, optional
        Address of a Dask scheduler, as ``tcp://host:8786``. Its workers make the runs instead: one per thread of
        theirs at a time, or one per ``GPU`` where workers advertise that resource. They must see both folders.
    progress : callable, optional
        Called after each run that was made now, with (run, how many are there, how many there will be).

    Returns
    -------
    list of Run
        One for each combination. A run that fails does not raise.

    Raises
    ------
    ValueError, TypeError, OSError
        Before any kernel starts, for values, a notebook, a folder or a scheduler that cannot be used, and for a folder
        that holds the same runs of another notebook.
    ConnectionError
        When the scheduler is lost on the way.
    """
    source, out = read_notebook(notebook), Path(out).absolute()
    version = importlib.metadata.version("optbook")
    constant = {"name": Path(notebook).name, "notebook": source_hash(source), "version": version}
    identities = [{"parameters": parameters, **constant} for parameters in product(values, source, notebook)]
    planned = {out / file_name(identity["parameters"]): identity for identity in identities}
    _require_writable(out)
    to_do = {path: identity for path, identity in planned.items() if not is_complete(path, identity)}
    for path, identity in to_do.items():
        require_same_notebook(path, identity)
    if to_do:
        from optbook.compare._execution import Job  # not before: a finished sweep shall be seen to be finished at once

        constant = json.dumps(source), Path(notebook).absolute().parent, 1 if scheduler else jobs
        with _on_cluster(scheduler) if scheduler else concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for path, identity in to_do.items():
                plan_run(path, identity)
            with tempfile.NamedTemporaryFile(dir=out / HIDDEN, suffix=".going") as going:
                work = [Job(path, identity, Path(going.name), *constant) for path, identity in to_do.items()]
                for ended, run in enumerate(_made(work, pool), len(planned) - len(work) + 1):
                    progress(run, ended, len(planned))
    return [read_run(path) for path in planned]


def _require_writable(out):
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise type(error)(f"nothing can be written to {out}: {error.strerror}.") from None


def _made(work, pool):
    """The runs of jobs, as they end; none is begun after the sweep has ended."""
    from optbook.compare._execution import execute

    futures = {pool.submit(execute, job): job for job in work}
    for future in concurrent.futures.as_completed(futures):
        yield _outcome(future, futures[future])


def _outcome(future, job):
    """The run of a job, which has failed too if whoever was to make it could not."""
    from optbook.compare import _execution

    if future.cancelled():  # not by us: Dask does so when its scheduler is gone
        raise ConnectionError("the Dask scheduler is gone; the same sweep will go on with what is missing.")
    error = future.exception()
    if error is None:
        return future.result()
    problem = " ".join(f"the worker: {type(error).__name__}: {error}".split())
    try:
        return _execution.give_up(job, problem)
    except OSError:  # not even this can be written, as on a full disk
        return Run(job.path, job.identity["parameters"], FAILED, problem)


@contextlib.contextmanager
def _on_cluster(scheduler):
    """The workers of a Dask cluster; where some have GPUs, only those, and one run for each GPU."""
    try:
        import distributed
    except ModuleNotFoundError:
        raise ValueError("a Dask scheduler needs the package distributed: pip install 'optbook[cluster]'.") from None
    try:
        client = distributed.Client(scheduler, timeout=CONNECTION_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OSError(f"no Dask scheduler answers at {scheduler}: {' '.join(str(error).split())}") from None
    with client:
        workers = client.scheduler_info()["workers"].values()
        resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None
        yield client.get_executor(pure=False, resources=resources)
