"""Executes notebooks: each in a fresh kernel, with the seconds it took and the memory its kernel reached."""

import contextlib
import dataclasses
import html
import itertools
import os
import signal
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import nbclient
import nbformat
import psutil
from traitlets.config import Config

from optbook._files import replace_text

CELL_TIMEOUT = 120  # seconds; a chapter takes less in all
OUTPUT_TIMEOUT = 120  # seconds from a cell's end until all that it has shown is here
START_TIMEOUT = 300  # seconds: many kernels may start at once, and one that died is noticed anyway
LONGEST_PLACE = 70  # bytes: the system allows a socket's path about 104
LONGEST_STREAM = 1_000_000  # characters kept of what a cell prints
CLEAN_EXITS = ("", "0", "None")  # of SystemExit: what it says after sys.exit(), sys.exit(0) and sys.exit(None)


@dataclasses.dataclass
class Executed:
    """One executed notebook.

    Attributes
    ----------
    notebook : NotebookNode
    seconds : float
        From the start of its kernel to the end.
    peak_mb : float
        The most resident memory its kernel had, looked at ten times a second.
    last_cell : int
        The last code cell that was begun, counted from 1; 0 if there was none.
    problem : str or None
        Why not every cell ran, in a line.
    exited : bool
        That is only because a cell called ``sys.exit`` or ``exit``, without saying that something failed.
    """

    notebook: nbformat.NotebookNode
    seconds: float = 0.0
    peak_mb: float = 0.0
    last_cell: int = 0
    problem: str | None = None
    exited: bool = False


class _Watch(threading.Thread):
    """Looks at a client's kernel ten times a second: how much memory it holds, and whether it is to go on."""

    def __init__(self, client, done, goes_on):
        super().__init__(daemon=True)
        self.client, self.done, self.goes_on, self.ended = client, done, goes_on, threading.Event()

    def run(self):
        while not self.ended.wait(0.1):
            pid = getattr(getattr(self.client.km, "provisioner", None), "pid", None)
            if pid is not None:
                with contextlib.suppress(psutil.Error, ProcessLookupError):  # not started yet, or just ended
                    self.done.peak_mb = max(self.done.peak_mb, psutil.Process(pid).memory_info().rss / 1e6)
                    if not self.goes_on():
                        os.killpg(pid, signal.SIGKILL)  # with all it has started: a kernel leads a process group

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.ended.set()
        self.join()


def execute(path, progress=lambda done, total: None):
    """Executes a notebook from its own folder, in order, in a fresh kernel.

    Parameters
    ----------
    path : path
        The notebook; it is not written to.
    progress : callable, optional
        Called with (cells done, cells in all) after each code cell.

    Returns
    -------
    Executed
        A failing cell or a killed kernel does not raise; it is named in ``problem``.
    """
    path = Path(path)
    return execute_in(path.parent, nbformat.read(path, as_version=4), progress, CELL_TIMEOUT)


def execute_in(folder, notebook, progress, timeout=None, environment=None, goes_on=lambda: True):
    """Executes a notebook in place, in a fresh kernel that works in ``folder``.

    Parameters
    ----------
    folder : path
    notebook : NotebookNode
        Old outputs go before the first cell runs.
    progress : callable
        Called with (cells done, cells in all) after each code cell.
    timeout : int, optional
        Seconds a cell may take.
    environment : dict, optional
        Variables that the kernel gets besides those of this process.
    goes_on : callable, optional
        Asked ten times a second; once it says no, the kernel is killed with all that it has started.

    Returns
    -------
    Executed
        Nothing that a notebook does, or that is done to its kernel, raises.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    done, started = Executed(notebook), time.perf_counter()
    try:
        # client.execute() would answer Ctrl-C by ending the kernel, and not the program.
        with (
            _client(notebook, timeout) as client,
            _Watch(client, done, goes_on),
            client.setup_kernel(cwd=str(folder), env=(environment or {}) | os.environ),
        ):
            client.kc.iopub_channel.socket.rcvhwm = 0  # no limit: what a kernel shows beyond it would be left out
            said = client.wait_for_reply(client.kc.kernel_info())
            notebook.metadata.language_info = said["content"]["language_info"]
            for index, cell in enumerate(notebook.cells):
                if cell.cell_type == "code" and not done.exited:
                    done.last_cell += 1
                    _execute_cell(client, cell, index, done)
                    progress(done.last_cell, len(code))
            client.set_widgets_metadata()
    except Exception as error:  # of the notebook, its kernel, the disk: whatever it is, others go on
        done.exited = getattr(error, "ename", "") == "SystemExit" and error.evalue in CLEAN_EXITS
        done.problem = _explained(error, done, timeout)
    if done.exited:
        done.problem = f"code cell {done.last_cell}: it left by exit"
    done.seconds = time.perf_counter() - started
    return done


@contextlib.contextmanager
def _client(notebook, timeout):
    """nbclient, which reaches the kernel through files: ports can be taken by others."""
    place = tempfile.gettempdir()
    if len(os.fsencode(place)) > LONGEST_PLACE:
        place = "/tmp"
    with tempfile.TemporaryDirectory(prefix="optbook-", dir=place, ignore_cleanup_errors=True) as sockets:
        yield nbclient.NotebookClient(
            notebook,
            kernel_name="python3",
            startup_timeout=START_TIMEOUT,
            timeout=timeout,
            iopub_timeout=OUTPUT_TIMEOUT,
            raise_on_iopub_timeout=True,
            extra_arguments=["--log-level=50"],  # no word of the interrupt by which an idle kernel is ended
            config=Config(KernelManager={"transport": "ipc", "connection_file": str(Path(sockets) / "kernel.json")}),
        )


def _execute_cell(client, cell, index, done):
    def executed(execute_reply, **_):
        payload = execute_reply["content"].get("payload", [])
        done.exited = any(part["source"] == "ask_exit" for part in payload)  # IPython's own exit()

    client.on_cell_executed = executed
    try:
        client.execute_cell(cell, index)
    finally:
        cell.outputs = one_of_each_stream(cell.outputs)


def _explained(error, done, timeout):
    """Why an execution ended early, in one line."""
    where = f"code cell {done.last_cell}" if done.last_cell else "the start of the kernel"
    if isinstance(error, nbclient.exceptions.CellExecutionError):
        said = f"{where}: {error.ename}: {error.evalue}"
    elif "IOPub" in str(error):
        said = f"{where}: not all that it shows has arrived"
    elif isinstance(error, nbclient.exceptions.CellTimeoutError):
        said = f"{where} ran longer than {timeout} s"
    elif isinstance(error, nbclient.exceptions.DeadKernelError) or "Kernel died" in str(error):
        said = f"the kernel was killed in {where}, having reached {done.peak_mb:.0f} MB"
    else:
        said = f"{where}: {type(error).__name__}: {error}"
    return textwrap.shorten(said, 300)


def one_of_each_stream(outputs):
    """Outputs of a cell with all it printed in one piece, which arrives cut at random, as a terminal shows it.

    As nbclient's ``coalesce_streams``, which takes quadratic time for a long line and keeps all of it.
    """
    streams, merged = {}, []
    for output in outputs:
        if output.output_type != "stream":
            merged.append(output)
        elif output.name in streams:
            streams[output.name].append(output.text)
        else:
            streams[output.name] = [output.text]
            merged.append(output)
    for output in merged:
        if output.output_type == "stream":
            lines = "".join(streams[output.name]).split("\n")
            text = "\n".join(line[line.rfind("\r", 0, -1) + 1 :] for line in lines)
            left_out, half = len(text) - LONGEST_STREAM, LONGEST_STREAM // 2
            if left_out > 0:
                text = f"{text[:half]}\n… {left_out:,} characters are left out …\n{text[-half:]}"
            output.text = text
    for first, second in itertools.pairwise(range(len(merged))):  # which of the two arrives first is chance
        if [merged[first].get("name"), merged[second].get("name")] == ["stderr", "stdout"]:
            merged[first], merged[second] = merged[second], merged[first]
    return merged


def write(notebook, path):
    """Writes beside and renames."""
    text = nbformat.writes(notebook, version=4, indent=1, sort_keys=True, ensure_ascii=False)
    replace_text(path, text + "\n")


def write_html(notebook, path):
    """One page of an executed notebook, pictures inside."""
    import nbconvert

    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    replace_text(path, page)


def write_index(chapters, path):
    """A page that links the pages of executed chapters, with seconds, memory and result of each."""
    rows = "".join(
        f'<tr><td><a href="{html.escape(name)}.html">{html.escape(name)}</a></td><td>{done.seconds:.0f}</td>'
        f"<td>{done.peak_mb:.0f}</td><td>{html.escape(done.problem or 'ok')}</td></tr>"
        for name, done in chapters.items()
    )
    style = "body{font:16px/1.5 sans-serif;margin:3em auto;max-width:50em}td,th{padding:.3em 1em;text-align:left}"
    replace_text(
        path,
        "<!doctype html><html lang=en><meta charset=utf-8><title>OPT, one layer at a time</title>"
        f"<style>{style}</style><h1>OPT, one layer at a time</h1><p>The chapters as they ran on this machine.</p>"
        f"<table><tr><th>chapter<th>seconds<th>peak MB<th>result</tr>{rows}</table></html>\n",
    )
