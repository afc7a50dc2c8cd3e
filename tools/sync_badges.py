"""Writes the repository's address wherever a reader meets it.

    python tools/sync_badges.py [https://github.com/OWNER/REPO]

The address has one place, [project.urls] in pyproject.toml; with an argument, as after a fork, it is changed there
first, and so are the links in README, CITATION.cff and the notebooks. Each notebook gets its links to Colab and Binder,
below the promise in its first cell, and the setup cell of tools/sync_cells.py. Their links are text, since a badge's
picture would be the one thing in a notebook that needs a network; README has its buttons in the repository.
"""

import re
import tomllib
from pathlib import Path

import click
import nbformat

from optbook import notebooks
from optbook._files import replace_text

ROOT = Path(__file__).parents[1]
TEXTS = ("README.md", "README.zh-CN.md", "CITATION.cff", "CONTRIBUTING.md")
ADDRESS = re.compile(r"https://github\.com/(?P<repository>[\w.-]+/[\w.-]+?)(\.git)?/?")
# Where an owner and a repository stand in a link: at GitHub, Colab and Binder.
LINK = r"(?P<before>https://(?:github\.com/|colab\.research\.google\.com/github/|mybinder\.org/v2/gh/)){}(?![\w-])"
MARK = "[Open in Colab]("


def repository():
    """OWNER/REPO as pyproject.toml has it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return ADDRESS.fullmatch(tomllib.load(file)["project"]["urls"]["Repository"])["repository"]


def places(name, repository):
    """Where the chapter of this file name opens: the addresses at Colab and at Binder."""
    return (
        f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}",
        f"https://mybinder.org/v2/gh/{repository}/main?labpath=notebooks/{name}",
    )


def links(name, repository):
    """The line of a chapter that opens it there."""
    colab, binder = places(name, repository)
    return f"{MARK}{colab}) · [Open in Binder]({binder})"


def sync_links(notebook, name, repository):
    """Puts the links below the first cell's promise, its second paragraph; True if anything changed."""
    first = notebook.cells[0]
    title, promise, *rest = [part for part in first.source.split("\n\n") if not part.startswith(MARK)]
    wanted = "\n\n".join([title, promise, links(name, repository), *rest])
    changed = first.source != wanted
    first.source = wanted
    return changed


def repoint(text, old, new):
    """The text with every link to the repository ``old`` going to ``new``."""
    return re.sub(LINK.format(re.escape(old)), lambda match: match["before"] + new, text)


@click.command(help=__doc__)
@click.argument("address", required=False)
def main(address):
    old = new = repository()
    if address:
        if not ADDRESS.fullmatch(address):
            raise click.UsageError(f"the address is https://github.com/OWNER/REPO, which {address} is not.")
        new = ADDRESS.fullmatch(address)["repository"]
    chapters = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in (*(ROOT / name for name in ("pyproject.toml", *TEXTS)), *chapters):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            replace_text(path, repoint(text, old, new))

    import sync_cells  # not before: its setup cell has the address

    for path in chapters:
        notebook = nbformat.read(path, as_version=4)
        if sync_cells.sync(notebook) | sync_links(notebook, path.name, new):
            notebooks.write(notebook, path)
            print(f"{path.name}: brought up to date")


if __name__ == "__main__":
    main()
