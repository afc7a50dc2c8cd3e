"""Which values a sweep goes through: typed, checked before any kernel starts, and turned into names of files."""

import ast
import contextlib
import hashlib
import itertools
import json
import re
from pathlib import Path

import yaml

from optbook.compare._record import check_json
from optbook.compare._runs import COLUMNS

PLAIN = re.compile(r"[a-z0-9_+-][a-z0-9._+-]*")  # means the same on every file system, also where case does not count
KIND = "tag:yaml.org,2002:"  # before bool, int, float, null, str: what YAML calls its types
YAML_WORDS = ("", "~", "null", "true", "false")  # which mean what they say
OTHER_BASE = re.compile(r"[-+]?0(o[0-7_]+|[0-9_]+)", re.IGNORECASE)  # 010, 0o10: ten or eight, by who reads
LONGEST = 120  # characters of a name, of the 255 bytes that file systems allow


def from_command_line(settings, file=None):
    """Lists of values by name, out of ``name=value,value`` strings and a YAML file that maps names to lists.

    Values are typed as by ``papermill -p``: True, False, None, integers, floats, else strings. In the file, true, false
    and null are what YAML says; what else means one thing in YAML and another on the command line is refused. A value
    with a comma, a list or the string "1" can only be given there.
    """
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not (name and equals):
            raise ValueError(f"{setting!r} sets nothing; write --set name=value or --set name=value,value.")
        if name in values:
            raise ValueError(f"{name} is set twice; give all its values at once: --set {name}=value,value.")
        values[name] = [_typed(value.strip()) for value in text.split(",")] if text.strip() else []
        if "" in values[name]:
            raise ValueError(f"--set {setting} has an empty value between its commas; give one in the YAML file.")
    listed = _from_yaml(file) if file else {}
    twice = values.keys() & listed.keys()
    if twice:
        raise ValueError(f"{min(twice)} is set on the command line and in {file}; set it in one place.")
    return listed | values


def _typed(text):
    """The rule of ``papermill -p``, which cannot be imported without three seconds of computing."""
    if text in ("True", "False", "None"):
        return ast.literal_eval(text)
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: ``1e-3`` is a number, and nobody's ``no``, ``010`` or ``1:30`` is taken for one."""

    def resolve(self, kind, value, implicit):
        tag = super().resolve(kind, value, implicit)
        if kind is not yaml.ScalarNode or not implicit[0] or value in YAML_WORDS:  # [0]: without quotes
            return tag
        typed = KIND + {type(None): "null"}.get(type(_typed(value)), type(_typed(value)).__name__)
        if OTHER_BASE.fullmatch(value) or tag not in (typed, KIND + "str"):
            raise ValueError(f"{value} is not the same to YAML as to --set; quote text, write numbers plainly")
        return typed

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise ValueError(f"{max(names, key=names.count)} stands there twice")
        return super().construct_mapping(node, deep)


def _from_yaml(file):
    try:
        listed = yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}.") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}.") from None
    if not isinstance(listed, dict) or not all(isinstance(several, list) for several in listed.values()):
        raise ValueError(f"{file} must map names to lists of values, as in 'dtype: [float32, bfloat16]'.")
    return listed


def product(values, notebook, path):
    """The parameters of each run: every combination of the values, which are checked first.

    Parameters
    ----------
    values : dict
        A list of values for each name.
    notebook : dict
        Its cell tagged ``parameters`` must set every one of the names.
    path : path
        What error messages call the notebook.
    """
    known = _parameters(notebook, path)
    if not values:
        raise ValueError("there is nothing to compare; name at least one parameter and its values.")
    for name, several in values.items():
        if name in COLUMNS:
            raise ValueError(f"a parameter cannot be called {name}, which is a column of every table; rename it.")
        if name not in known:
            raise ValueError(f"{path} has no parameter {name!r}; it has {', '.join(known) or 'none'}.")
        if not isinstance(several, list | tuple):
            raise ValueError(f"the values of {name} must be a list, but are {several!r}.")
        if not several:
            raise ValueError(f"the list of values of {name} is empty.")
        for value in several:
            check_json(name, value)
        texts = [json.dumps(value, sort_keys=True) for value in several]
        if len(set(texts)) < len(texts):
            raise ValueError(f"{name} has the value {max(texts, key=texts.count)} twice.")
    as_read_back = json.loads(json.dumps(values))  # a tuple comes out of a notebook as a list
    return [dict(zip(values, choice)) for choice in itertools.product(*as_read_back.values())]


def _parameters(notebook, path):
    """Names that the cell tagged ``parameters`` sets, as Python sees it: papermill's own reading skips some lines."""
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            try:
                tree = ast.parse(cell["source"])
            except SyntaxError as error:
                raise ValueError(f"the parameters cell of {path} is not Python: {error}.") from None
            targets = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
            return list(dict.fromkeys(node.id for node in targets if isinstance(node.ctx, ast.Store)))
    raise ValueError(f"{path} has no cell tagged 'parameters', so nothing in it can be set.")


def file_name(parameters):
    """Where a run is kept: ``dtype=bfloat16,preset=opt_125m_en.ipynb``.

    A short hash of the parameters follows where the name alone would be too long, or could be another run's: after a
    slash became a hyphen, with capitals, for the string "1" beside the number.
    """
    parts = {name: _slug(value) for name, value in sorted(parameters.items())}
    name = ",".join(f"{key}={slug}" for key, slug in parts.items())
    exact = all(PLAIN.fullmatch(key) and _stands_for(slug, parameters[key]) for key, slug in parts.items())
    if not exact or len(name) > LONGEST:
        canonical = json.dumps(parameters, sort_keys=True)
        name = f"{name[:LONGEST]}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"
    return f"{name}.ipynb"


def _slug(value):
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-") if not PLAIN.fullmatch(text) else text


def _stands_for(slug, value):
    """Does this slug mean this value and no other? Numbers, true, false and null are read as JSON, the rest as text."""
    try:
        return json.dumps(json.loads(slug)) == json.dumps(value)
    except ValueError:
        return slug == value and PLAIN.fullmatch(slug) is not None


def source_hash(notebook):
    """Changes with what a notebook says and does: its cells and their tags, not its outputs."""
    cells = [[cell["cell_type"], cell["source"], cell["metadata"].get("tags", [])] for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()
