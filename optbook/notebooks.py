"""Runs the chapters: each in a fresh kernel, with the seconds it took and the memory its kernel reached."""

import base64
import dataclasses
import html
import io
import threading
import time
from pathlib import Path

import nbclient
import nbformat
import psutil
from PIL import Image

from optbook._files import replace_text

CELL_TIMEOUT = 120  # seconds; a chapter takes less in all


@dataclasses.dataclass
class Run:
    """One executed notebook: ``problem`` is None when every cell ran."""

    notebook: nbformat.NotebookNode
    seconds: float
    peak_mb: float
    problem: str | None


class MemoryWatch(threading.Thread):
    """Samples the resident memory of a client's kernel, ten times a second, while its block runs."""

    def __init__(self, client):
        super().__init__(daemon=True)
        self.client, self.peak_mb, self.stopped = client, 0.0, threading.Event()

    def run(self):
        while not self.stopped.wait(0.1):
            pid = getattr(getattr(self.client.km, "provisioner", None), "pid", None)
            if pid is not None:
                try:
                    self.look(psutil.Process(pid))
                except psutil.Error:  # not started yet, or just ended
                    continue

    def look(self, kernel):
        self.peak_mb = max(self.peak_mb, kernel.memory_info().rss / 1e6)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.join()


def execute(path, progress=None):
    """Executes a notebook from its own folder, in order, in a fresh kernel.

    Parameters
    ----------
    path : path
        The notebook; it is not written to.
    progress : callable, optional
        Called with (cells done, cells in all) after each code cell.

    Returns
    -------
    Run
        A failing cell or a killed kernel does not raise; it is named in ``problem``.
    """
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    done = 0

    def cell_executed(**_):
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],  # errors only: the kernel warns of its TCP port at every start
        coalesce_streams=True,  # otherwise what one cell prints is cut at random
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=cell_executed,
    )
    watch = MemoryWatch(client)
    started, problem = time.perf_counter(), None
    try:
        with watch:
            client.execute()
    except nbclient.exceptions.DeadKernelError:
        problem = f"the kernel was killed in code cell {done + 1}, having reached {watch.peak_mb:.0f} MB"
    except nbclient.exceptions.CellTimeoutError:
        problem = f"code cell {done + 1} ran longer than {CELL_TIMEOUT} s"
    except nbclient.exceptions.CellExecutionError as error:
        problem = f"code cell {done}: {error.ename}: {error.evalue}"
    return Run(notebook, time.perf_counter() - started, watch.peak_mb, problem)


def _in_palette(png):
    """A base64 PNG in 256 colors: a third of the size, and the eye sees no difference in a heat map or a plot."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P":
        return png
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    smaller = io.BytesIO()
    paper.quantize(256, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode("ascii")


def stable(notebook):
    """The notebook without what differs from run to run: times, machine, editor; sorted metadata, small pictures."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("jupyter", "tags") if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _in_palette(output.data["image/png"])
    return notebook


def write(notebook, path):
    """Writes beside and renames."""
    text = nbformat.writes(notebook, version=4, indent=1, sort_keys=True, ensure_ascii=False)
    replace_text(path, text + "\n")


def write_html(notebook, path):
    """One page of an executed notebook, pictures inside."""
    import nbconvert

    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    replace_text(path, page)


def write_index(runs, path):
    """A page that links the pages of several runs, with seconds, memory and result of each."""
    rows = "".join(
        f'<tr><td><a href="{html.escape(name)}.html">{html.escape(name)}</a></td><td>{run.seconds:.0f}</td>'
        f"<td>{run.peak_mb:.0f}</td><td>{html.escape(run.problem or 'ok')}</td></tr>"
        for name, run in runs.items()
    )
    style = "body{font:16px/1.5 sans-serif;margin:3em auto;max-width:50em}td,th{padding:.3em 1em;text-align:left}"
    replace_text(
        path,
        "<!doctype html><html lang=en><meta charset=utf-8><title>OPT, one layer at a time</title>"
        f"<style>{style}</style><h1>OPT, one layer at a time</h1><p>The chapters as they ran on this machine.</p>"
        f"<table><tr><th>chapter<th>seconds<th>peak MB<th>result</tr>{rows}</table></html>\n",
    )
