"""Processes that are killed at any moment: a sweep goes on afterwards, and ends as if nothing had happened."""

import multiprocessing
import random

import psutil
import pytest
from sweeps import contents, write_notebook

from optbook import compare

KILLS = 20
VALUES = {"number": [1, 2, 3, 4, 5, 6], "name": ["a"]}
WORK = "import time\nfor i in range(5):\n    time.sleep(0.05)\n    print(number * i)"
RECORD = "from optbook.compare import record\nrecord(total=sum(range(number)), name=name)"
# Starts processes by forking one that has loaded what executes notebooks, so that they start in no time.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["optbook.compare._execution"])


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    return write_notebook(tmp_path_factory.mktemp("kills") / "small.ipynb", WORK, RECORD)


@pytest.fixture(scope="module")
def undisturbed(notebook):
    """What the runs of a sweep that nobody disturbs hold, by the names of their files."""
    return all_contents(compare.sweep(notebook, VALUES, notebook.parent / "undisturbed", jobs=2))


def all_contents(runs):
    return {run.path.name: (run.record, contents(run.path)) for run in runs}


def test_kernels_and_sweeps_that_are_killed(notebook, undisturbed):
    chance, kills, killed, folders, kernels = random.Random(0), 0, set(), [], set()
    while kills < KILLS:
        if not folders or all(run.state == "complete" for run in compare.runs(folders[-1])):
            folders.append(notebook.parent / f"disturbed {len(folders)}")
            folders[-1].mkdir()
        process = FORKED.Process(target=compare.sweep, args=(notebook, VALUES, folders[-1], 2))
        process.start()
        sweep = psutil.Process(process.pid)
        while process.is_alive() and kills < KILLS:
            process.join(chance.uniform(0, 1))
            kernels |= set(children(sweep))
            role, victim = chance.choice([("sweep", sweep), *(("kernel", kernel) for kernel in children(sweep))])
            if process.is_alive() and kill(victim):
                kills += 1
                killed.add(role)
        process.kill()
        process.join()
    assert killed == {"sweep", "kernel"}
    for folder in folders:
        assert all_contents(compare.sweep(notebook, VALUES, folder, jobs=2)) == undisturbed
        assert sorted(path.name for path in folder.glob("*")) == sorted([".optbook", *undisturbed])
        assert not list((folder / ".optbook").glob("*.ipynb"))
    _, alive = psutil.wait_procs(kernels, timeout=10)
    assert not alive


def children(process):
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def kill(process):
    """Whether there was anything to kill."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def test_a_worker_of_a_cluster_that_is_killed(notebook, undisturbed):
    import distributed

    begun = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**begun) as cluster:
        victim = psutil.Process(random.Random(0).choice([worker.pid for worker in cluster.workers.values()]))
        kernels = []

        def progress(*_):
            if not kernels and children(victim):
                kernels.extend(children(victim))
                victim.kill()

        found = compare.sweep(
            notebook, VALUES, notebook.parent / "cluster", scheduler=cluster.scheduler_address, progress=progress
        )
    assert kernels
    assert all_contents(found) == undisturbed
    _, alive = psutil.wait_procs(kernels, timeout=10)
    assert not alive
