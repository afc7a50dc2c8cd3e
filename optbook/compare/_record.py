"""What a run found out, kept in the notebook that found it: numbers as one MIME type among the outputs of its cells."""

import json
import math
from pathlib import Path

MIME_TYPE = "application/vnd.optbook.report+json"
SCHEMA = 1  # raised when what stands under the MIME type changes its form
SCALARS = (str, bool, int, float, type(None))

_recorded = {}  # name: the cell that recorded it and which of its executions, in this kernel


def record(**numbers):
    """Keeps numbers in the notebook: shows them as a table, and as JSON for `read_record` and `runs`.

    Several calls add up. A name is recorded once; running the same cell again replaces what it recorded, in JupyterLab
    and on Colab.

    Parameters
    ----------
    **numbers : JSON
        Numbers, strings, booleans, None, or lists and dictionaries of them. What has no value is None, never NaN.

    Raises
    ------
    ValueError
        For NaN, infinity and a name that another cell, or this one, has recorded already.
    TypeError
        For a value that JSON does not know, such as an array.
    """
    from IPython.display import display

    cell, execution = _executing_cell()
    for name, value in numbers.items():
        check_json(name, value)
        earlier_cell, earlier_execution = _recorded.get(name, (None, None))
        if name in _recorded and (cell is None or earlier_cell != cell or earlier_execution == execution):
            raise ValueError(f"{name} is recorded already; a name is recorded once in a notebook.")
    _recorded.update(dict.fromkeys(numbers, (cell, execution)))
    display({MIME_TYPE: {"schema": SCHEMA, "numbers": numbers}, "text/plain": _table(numbers)}, raw=True)


def read_record(path):
    """What a notebook has recorded, merged over its cells.

    Parameters
    ----------
    path : path
        An executed notebook.

    Returns
    -------
    dict
        Values by name.

    Raises
    ------
    ValueError
        If it recorded nothing, one name twice, or was written by a newer optbook; and if it is no notebook.
    """
    found = recorded_in(read_notebook(path), path)
    if not found:
        raise ValueError(f"{path} has recorded nothing: no cell of it ran optbook.compare.record.")
    return found


def read_notebook(path):
    """A notebook of format 4 as a dictionary, the source of each cell one string; ValueError if the file is none.

    By hand, since importing nbformat takes three seconds of computing, and every kernel would spend them.
    """
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        if notebook["nbformat"] != 4:
            raise ValueError(f"{path} has notebook format {notebook['nbformat']}; optbook reads format 4.")
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])  # which may be a list of lines
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is not a notebook.") from None
    return notebook


def recorded_in(notebook, path):
    """The merged record of a notebook that was read from ``path``; empty if there is none."""
    merged = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if MIME_TYPE not in output.get("data", {}):
                continue
            content = output["data"][MIME_TYPE]
            if content.get("schema") != SCHEMA:
                raise ValueError(
                    f"{path} holds a record of schema {content.get('schema')!r}; this optbook reads schema {SCHEMA}."
                )
            twice = merged.keys() & content["numbers"].keys()
            if twice:
                raise ValueError(f"{path} records {min(twice)} twice.")
            merged.update(content["numbers"])
    return merged


def _executing_cell():
    """(id of the cell, number of its execution); the id is None where nobody says it, as when papermill executes."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None or not hasattr(shell, "get_parent"):  # plain Python, or IPython in a terminal
        return None, None
    metadata = shell.get_parent().get("metadata", {})
    return metadata.get("cellId") or metadata.get("colab", {}).get("cell_id"), shell.execution_count


def check_json(name, value):
    """Raises, in one line, unless ``value`` is JSON; ``name`` tells where it stands."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} is {value!r}, which is no Unicode text.") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, which JSON cannot hold; None stands for a missing value.")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name} has the key {key!r}; the keys of a dictionary must be strings.")
            check_json(f"{name}[{key!r}]", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            check_json(f"{name}[{index}]", inner)
    elif not isinstance(value, SCALARS):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{name} is a {kind}, not JSON; float(x) or x.tolist() makes a number or a list of an array.")


def _table(numbers):
    """A line for each name; ≈ stands before what was measured. What takes more than a line is counted, not printed."""

    def shown(value):
        if isinstance(value, float):
            return f"≈ {value:.4g}"
        if isinstance(value, dict | list | tuple):
            return f"= {len(value)} values"
        return f"= {json.dumps(value, ensure_ascii=False)}"

    width = max(map(len, numbers), default=0)
    return "\n".join(f"{name:{width}}  {shown(value)}" for name, value in numbers.items())
