"""How files are written: beside, then renamed, so that a stopped run leaves no half file."""

import atexit
import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Gives a path to write to, which takes the place of ``path`` when the block ends and goes if the block fails."""
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:  # a name that nobody else has
        partial = Path(folder, path.name)  # inside it, so that the file gets the permissions of any new file
        yield partial
        os.replace(partial, path)


def replace_text(path, text):
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path):
    """The object in a JSON file, a dict; one line for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged or cut short: it is not an object in JSON; fetch it again.")
    return content


def is_beside(name):
    """Does this name, which comes from outside, stand for a file of the same folder and nothing else?"""
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..")


def write_json(path, content):
    replace_text(path, json.dumps(content, indent=4) + "\n")


def temporary_folder():
    """An empty folder, which goes when Python ends."""
    folder = tempfile.mkdtemp(prefix="optbook-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
