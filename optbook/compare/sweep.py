"""A sweep: one notebook, run once for each combination of values, several at a time, here or on a Dask cluster."""

import concurrent.futures
import contextlib
import importlib.metadata
import json
import tempfile
import uuid
from pathlib import Path

from optbook.compare.record import read_notebook
from optbook.compare.runs import FAILED, Run, is_complete, plan_run, read_run, require_same_notebook
from optbook.compare.values import file_name, product, source_hash

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
        from optbook.compare.execution import Job  # not before: a finished sweep shall be seen to be finished at once

        name, text, folder = uuid.uuid4().hex, json.dumps(source), Path(notebook).absolute().parent
        with _on_cluster(scheduler) if scheduler else _here(jobs) as (pool, everywhere):
            for path, identity in to_do.items():
                plan_run(path, identity)
            kernels = 1 if scheduler else jobs
            work = [Job(name, text, folder, path, identity, kernels) for path, identity in to_do.items()]
            _make(work, pool, everywhere, progress, len(planned))
    return [read_run(path) for path in planned]


def _require_writable(out):
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise type(error)(f"nothing can be written to {out}: {error.strerror}.") from None


def _make(work, pool, everywhere, progress, total):
    """Sees all jobs through; if it is interrupted, no kernel of theirs is left."""
    from optbook.compare import execution

    futures, complete = {}, total - len(work)
    try:
        futures |= {pool.submit(execution.execute, job): job for job in work}
        for ended, future in enumerate(concurrent.futures.as_completed(futures), complete + 1):
            progress(_outcome(future, futures[future]), ended, total)
    except ConnectionError:  # nobody is there to be told to stop
        raise
    except BaseException:  # Ctrl-C among them
        everywhere(execution.stop, work[0].sweep)
        for future in futures:
            future.cancel()
        raise


def _outcome(future, job):
    """The run of a job, which has failed too if whoever was to make it could not."""
    from optbook.compare import execution

    if future.cancelled():  # not by us: Dask does so when its scheduler is gone
        raise ConnectionError("the Dask scheduler is gone; the same sweep will go on with what is missing.")
    error = future.exception()
    if error is None:
        return future.result()
    problem = " ".join(f"the worker: {type(error).__name__}: {error}".split())
    try:
        with execution.lock(job):
            if not is_complete(job.path, job.identity):
                execution.end(job, problem)
    except OSError:  # not even this can be written, as on a full disk
        return Run(job.path, job.identity["parameters"], FAILED, problem)
    return read_run(job.path)


@contextlib.contextmanager
def _here(jobs):
    """Threads, each with one kernel at a time: kernels are processes, and all the work is theirs."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        yield pool, lambda function, *arguments: function(*arguments)


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
        yield client.get_executor(pure=False, resources=resources), client.run
