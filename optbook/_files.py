"""How files are written: beside, then renamed, so that a stopped run leaves no half file; and how text is read."""

import atexit
import codecs
import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

GIT_LFS = b"version https://git-lfs"  # how the pointer starts that Git LFS leaves in place of a large file


@contextlib.contextmanager
def replacing(path):
    """Gives a path to write to, which takes the place of ``path`` when the block ends and goes if the block fails."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}.")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:  # a name that nobody else has
        partial = Path(folder, path.name)  # inside it, so that the file gets the permissions of any new file
        yield partial
        os.replace(partial, path)


def replace_text(path, text):
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_fetched(path, start):
    """Raises ValueError where ``start``, a file's first bytes, is Git LFS's pointer to the file."""
    if start.startswith(GIT_LFS):
        raise ValueError(f"{path} only points to the file meant; `git lfs pull` fetches it.")


def read_text(path):
    """The text in a file; one line for Git LFS's pointer, a byte-order mark, and what is not UTF-8."""
    content = Path(path).read_bytes()
    check_fetched(path, content)
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} starts with a byte-order mark; save it as UTF-8 without one.")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is damaged or cut short: it is not text in UTF-8; fetch it again.") from None


def read_json(path):
    """The object in a JSON file, a dict; one line for anything else."""
    text = read_text(path)
    try:
        content = json.loads(text)
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
