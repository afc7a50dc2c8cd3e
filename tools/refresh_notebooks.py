"""Executes notebooks in fresh kernels and writes their outputs back in a stable form.

    python tools/refresh_notebooks.py [notebooks/03_attention.ipynb …]

All chapters when none is named. A notebook with a failing cell is left as it was. Class cells and the setup cell are
brought up to date first (tools/sync_cells.py).
"""

import base64
import io
import sys
from pathlib import Path

import click
import nbformat
from PIL import Image
from sync_cells import NOTEBOOKS, sync

from optbook import notebooks


def in_palette(png):
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
                output.data["image/png"] = in_palette(output.data["image/png"])
    return notebook


def write_first_figure(notebook, path):
    """The picture that the README shows is the first one of chapter 00."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    path.write_bytes(base64.b64decode(next(o.data["image/png"] for o in outputs if "image/png" in o.get("data", {}))))


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
def main(paths):
    failed = False
    for path in paths or sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if sync(notebook):
            notebooks.write(notebook, path)
        run = notebooks.execute(path)
        if run.problem is None:
            notebooks.write(stable(run.notebook), path)
            if path.name.startswith("00"):
                write_first_figure(run.notebook, NOTEBOOKS / "attention.png")
        failed = failed or run.problem is not None
        print(f"{path.name}: {run.problem or 'ok'}, {run.seconds:.0f} s, {run.peak_mb:.0f} MB", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
