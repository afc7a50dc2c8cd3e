"""Writes what conda and Binder install: environment.yml and binder/requirements.txt, from requirements.lock.

    make derived

Reads from standard input which packages `optbook` needs, a requirement a line, as uv lists them: Binder gets those.
`make lock` calls it. Needs nothing but Python.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = "3.12"
LEFT_OUT = "keras-hub"
REASONS = {
    "jaxlib": "the one that this jax was built for",
    "kagglesdk": "keras-hub 0.32 takes no other",
}
CONDA = f"""\
# For conda. Written from requirements.lock by tools/make_environment.py: change pyproject.toml, then `make lock`.
#
#     conda env create
#     conda run --name optbook pip install --no-deps -r requirements.lock -e .
#
# Everything comes from PyPI, in the versions that the tests ran with; conda-forge need not have these.
# The second command adds {LEFT_OUT} and this repository's package. {LEFT_OUT} declares tensorflow-text, which brings
# all of TensorFlow and which it does not need on JAX; and conda cannot hand --no-deps to pip.
name: optbook
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python={PYTHON}  # in the middle of those that are tested; Binder has the same
  - pip
  - pip:
"""
BINDER = """\
# What a reader needs of requirements.lock, written by tools/make_environment.py. postBuild adds keras-hub.
"""


def package(line):
    return re.match(r"[\w.-]*", line)[0]


def environment(lock):
    """The text of environment.yml for the lines of a lock file."""
    reasons = {line: f"  # {REASONS[package(line)]}" if package(line) in REASONS else "" for line in lock}
    return CONDA + "".join(f"      - {line}{reasons[line]}\n" for line in lock if package(line) != LEFT_OUT)


def requirements(lock, needed):
    """The text of binder/requirements.txt: the lines of a lock file for these packages."""
    return BINDER + "".join(f"{line}\n" for line in lock if package(line) in needed - {LEFT_OUT})


def main():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    needed = {package(line) for line in sys.stdin}
    if LEFT_OUT not in needed:
        sys.exit(f"standard input does not list what optbook needs: {LEFT_OUT} is not among it. Is uv installed?")
    (ROOT / "environment.yml").write_text(environment(lock), encoding="utf-8")
    (ROOT / "binder" / "requirements.txt").write_text(requirements(lock, needed), encoding="utf-8")


if __name__ == "__main__":
    main()
