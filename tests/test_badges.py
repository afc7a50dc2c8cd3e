"""The links that open a chapter on Colab and Binder, and the one address that they and the setup cell have."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import sync_badges
import sync_cells
from click.testing import CliRunner

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LINKS = re.compile(
    r"https://colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/([^)\s]+)"
    r"|https://mybinder\.org/v2/gh/([\w.-]+/[\w.-]+)/main(?:\?labpath=([^)\s]+))?"
    r"|https://github\.com/([\w.-]+/[\w.-]+)/raw/main/([\w./-]+)"
)


def links(text):
    """(repository, path or None) of every link to Colab or Binder, or to a file as it is."""
    return [(*filter(None, one.groups()), None)[:2] for one in LINKS.finditer(text)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_chapter_opens_itself(path):
    first = nbformat.read(path, as_version=4).cells[0].source
    itself = sync_badges.repository(), f"notebooks/{path.name}"
    assert links(first) == [itself, itself], "python tools/sync_badges.py"
    assert first.split("\n\n")[2].startswith(sync_badges.MARK), "not below the promise: python tools/sync_badges.py"


@pytest.mark.parametrize("name", [*sync_badges.TEXTS, *(f"notebooks/{path.name}" for path in CHAPTERS)])
def test_every_link_leads_to_a_file_of_this_repository(name):
    if not (ROOT / name).exists():
        pytest.skip(f"there is no {name}")
    for repository, path in links((ROOT / name).read_text(encoding="utf-8")):
        assert repository == sync_badges.repository()
        assert path is None or (ROOT / path).is_file()


def test_the_readme_opens_the_first_chapter():
    assert (sync_badges.repository(), "notebooks/00_start_here.ipynb") in links((ROOT / "README.md").read_text())


def test_the_setup_cell_installs_from_the_address():
    assert f"https://github.com/{sync_badges.repository()}/archive/main.zip" in sync_cells.SETUP


def test_the_links_go_below_the_promise_and_once(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n\nPromise.\n\nNeeds.\n\n- a")])
    assert sync_badges.sync_links(notebook, "a.ipynb", "old/one")
    assert sync_badges.sync_links(notebook, "a.ipynb", "new/one")
    assert not sync_badges.sync_links(notebook, "a.ipynb", "new/one")
    title, promise, line, *rest = notebook.cells[0].source.split("\n\n")
    assert (title, promise, rest) == ("# Title", "Promise.", ["Needs.", "- a"])
    assert links(line) == [("new/one", "notebooks/a.ipynb")] * 2


def test_a_fork_is_repointed_everywhere(tmp_path):
    """In a copy, by one command: pyproject.toml, README and a notebook, its setup cell included."""
    changed = ["pyproject.toml", "README.md", "notebooks/12_comparing_presets.ipynb"]
    for name in (*changed, "tools/sync_badges.py", "tools/sync_cells.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "tools/sync_badges.py", "https://github.com/some-one/my.fork"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    for name in changed:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "some-one/my.fork" in text
        assert not re.search(rf"(github\.com|/github|/gh)/{sync_badges.repository()}\b", text)
    assert "https://github.com/some-one/my.fork/archive/main.zip" in text


@pytest.mark.parametrize("address", ["some-one/fork", "https://github.com/some-one", "https://example.org/a/b"])
def test_a_wrong_address_is_refused_in_one_line(address):
    result = CliRunner().invoke(sync_badges.main, [address])
    assert result.exit_code == 2
    assert f"the address is https://github.com/OWNER/REPO, which {address} is not." in result.output


def test_only_whole_names_are_repointed():
    text = "https://github.com/a/b https://github.com/a/b/issues https://github.com/a/bc github.com/a/b"
    assert sync_badges.repoint(text, "a/b", "x/y") == (
        "https://github.com/x/y https://github.com/x/y/issues https://github.com/a/bc github.com/a/b"
    )
