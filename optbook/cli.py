"""The command line: `doctor` looks at the machine, `plan` counts memory, `run` executes chapters, `compare` sweeps."""

import contextlib
import math
import sys
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main():
    """OPT, one layer at a time."""


@main.command()
def doctor():
    """Is this machine ready, and which presets fit it?"""
    from optbook import machine, memory

    console = Console()
    table = Table("what", "found", title="This machine")
    for name, value in machine.facts():
        table.add_row(name, value)
    console.print(table)
    results = machine.checklist()
    for statement, holds in results.items():
        console.print(f"[{'green' if holds else 'bold red'}]{'yes' if holds else 'NO '}[/]  {statement}")
    console.print(_plan_table(memory.all_plans()))
    sys.exit(0 if all(results.values()) else 1)


@main.command()
@click.argument("preset", nargs=-1)
@click.option("--dtype", help="float32, bfloat16, float16, mixed_bfloat16 or mixed_float16.  [default: Keras's]")
@click.option("--sequence-length", type=int, help="Tokens of a sequence.  [default: as many as the preset takes]")
@click.option("--batch-size", type=int, default=1, show_default=True, help="Sequences at a time.")
def plan(preset, dtype, sequence_length, batch_size):
    """What PRESET needs in memory and where that fits, before anything is downloaded.

    Without PRESET all presets are listed, a line each. The exit code is 1 when a named one cannot be loaded here.
    """
    from optbook import memory

    options = dtype, sequence_length, batch_size
    try:
        plans = [memory.plan(name, *options) for name in preset] if preset else memory.all_plans(*options)
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None
    if not preset:
        Console().print(_plan_table(plans))
        return
    place = memory.this_machine()
    for one in plans:
        click.echo(one.table((*memory.PLACES, place)))
        beyond = [activity for activity in memory.Needs._fields if activity not in one.fitting(place)]
        click.echo(f"\n{memory.refusal(one, place, beyond[0])}\n" if beyond else "")
    sys.exit(any(not one.fitting(place) for one in plans))


def _plan_table(plans):
    """A line for each plan: what it needs here, and what of it this machine has not got."""
    from optbook import memory

    place = memory.this_machine()
    table = Table(
        title=f"Memory; \N{BALLOT X} marks more than the {memory.gigabytes(place.limit)} free here", box=SIMPLE_HEAD
    )
    for name in ("preset", "parameters", *memory.Needs._fields):
        table.add_column(name, no_wrap=True, justify="left" if name == "preset" else "right")
    for one in plans:
        possible = one.fitting(place)
        needs = (one.on_gpu if place.gpu else one.on_cpu)._asdict()
        cells = [memory.gigabytes(needs[name]) + (" " if name in possible else "\N{BALLOT X}") for name in needs]
        table.add_row(one.preset, f"{one.parameters:,}", *cells)
    return table


@main.command()
@click.argument("chapters", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("build"), show_default=True)
def run(chapters, out):
    """Execute CHAPTERS (all of notebooks/ when none is named); write notebooks and HTML pages to --out."""
    from optbook import notebooks

    chapters = chapters or sorted(Path("notebooks").glob("[0-9]*.ipynb"))
    if not chapters:
        raise click.UsageError(
            "there is no notebooks/ folder here; run from the repository's folder or name notebooks."
        )
    console = Console()
    table = Table("chapter", "seconds", "peak MB", "result")
    executed = {}
    columns = TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        for chapter in chapters:
            task = progress.add_task(chapter.stem, total=None)
            done = notebooks.execute(
                chapter, lambda n, total, task=task: progress.update(task, completed=n, total=total)
            )
            executed[chapter.stem] = done
            notebooks.write(done.notebook, _folder(out / "notebooks") / chapter.name)
            notebooks.write_html(done.notebook, out / f"{chapter.stem}.html")
            table.add_row(chapter.stem, f"{done.seconds:.0f}", f"{done.peak_mb:.0f}", done.problem or "ok")
    notebooks.write_index(executed, out / "index.html")
    console.print(table)
    console.print(f"Executed notebooks: {out / 'notebooks'}; pages: {out / 'index.html'}")
    sys.exit(any(done.problem for done in executed.values()))


@main.command()
@click.argument("notebook", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE,…", help="Values of a parameter, typed as by papermill -p."
)
@click.option("--sweep", "file", type=click.Path(exists=True, dir_okay=False), help="The same in YAML: name: [values].")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Kernels at a time, here.  [default: 1]")
@click.option("--scheduler", metavar="ADDRESS", help="Run on the workers of this Dask cluster, as tcp://host:8786.")
@click.option(
    "--report",
    "folder",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Run nothing; write the report of a folder of runs into it.",
)
def compare(notebook, settings, file, out, jobs, scheduler, folder):
    """Run NOTEBOOK with every combination of values; what is complete in --out already is not run again.

    A relative path among the values is seen from the notebook's folder, where the kernels work.

    The same command goes on with a sweep that was stopped, and repeats what failed. The exit code is 0 when all runs
    are complete, 1 when some are not, 2 for bad use, 130 after Ctrl-C.
    """
    from optbook import compare
    from optbook.compare._values import from_command_line

    if (notebook is None) == (folder is None):
        raise click.UsageError("name a notebook to run, or --report FOLDER to look at the runs of a folder.")
    if jobs and scheduler:
        raise click.UsageError("--jobs counts kernels here; on a cluster the workers of --scheduler decide.")
    try:
        if folder:
            click.echo(compare.report(folder))
            return
        values = from_command_line(settings, file)
        with _sweep_bar(notebook.stem, math.prod(map(len, values.values()))) as progress:
            found = compare.sweep(notebook, values, out, jobs or 1, scheduler, progress)
    except ConnectionError as error:
        raise click.ClickException(str(error)) from None
    except (ValueError, TypeError, OSError) as error:
        raise click.UsageError(str(error)) from None
    except KeyboardInterrupt:
        click.echo(f"Stopped. What is complete in {out} stays; the same command goes on.", err=True)
        sys.exit(130)  # as shells have it for Ctrl-C
    complete = sum(run.state == "complete" for run in found)
    click.echo(f"{complete} of {len(found)} runs are complete in {out}.")
    sys.exit(complete < len(found))


@contextlib.contextmanager
def _sweep_bar(title, total):
    """A bar, and above it a line for each run that has ended."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console()) as bar:
        task = bar.add_task(title, total=total)

        def progress(run, ended, _):
            took = f"{run.seconds:.0f} s, {run.peak_memory / 1e6:.0f} MB" if run.seconds else ""
            line = f"{run.state:8}  {run.path.stem}  {took}  {run.error or ''}"
            bar.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
            bar.update(task, completed=ended)

        yield progress


def _folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path
