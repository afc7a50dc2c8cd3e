"""The command line: `optbook doctor` looks at the machine, `optbook run` executes the chapters."""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main():
    """OPT, one layer at a time."""


@main.command()
def doctor():
    """Is this machine ready, and which presets fit it?"""
    from optbook import machine

    console = Console()
    table = Table("what", "found", title="This machine")
    for name, value in machine.facts():
        table.add_row(name, value)
    console.print(table)
    results = machine.checklist()
    for statement, holds in results.items():
        console.print(f"[{'green' if holds else 'bold red'}]{'yes' if holds else 'NO '}[/]  {statement}")
    table = Table("preset", "parameters", "float32 weights", "weights fit in", title="Presets")
    for preset, parameters, gigabytes, types in machine.fitting():
        table.add_row(preset, f"{parameters:,}", f"{gigabytes:.2f} GB", types)
    console.print(table)
    sys.exit(0 if all(results.values()) else 1)


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
    runs = {}
    columns = TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        for chapter in chapters:
            task = progress.add_task(chapter.stem, total=None)
            done = notebooks.execute(
                chapter, lambda n, total, task=task: progress.update(task, completed=n, total=total)
            )
            runs[chapter.stem] = done
            notebooks.write(done.notebook, _folder(out / "notebooks") / chapter.name)
            notebooks.write_html(done.notebook, out / f"{chapter.stem}.html")
            table.add_row(chapter.stem, f"{done.seconds:.0f}", f"{done.peak_mb:.0f}", done.problem or "ok")
    notebooks.write_index(runs, out / "index.html")
    console.print(table)
    console.print(f"Executed notebooks: {out / 'notebooks'}; pages: {out / 'index.html'}")
    sys.exit(any(done.problem for done in runs.values()))


def _folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path
