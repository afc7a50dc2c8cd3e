"""How files are written: beside, then renamed, so that a stopped run leaves no half file."""

import os
from pathlib import Path


def replace_text(path, text):
    path = Path(path)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
