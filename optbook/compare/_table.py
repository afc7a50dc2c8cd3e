"""Many runs as one table: its rows, a CSV file, and a page with pictures and a link to each run."""

import base64
import csv
import dataclasses
import html
import io
import json
from pathlib import Path
from urllib.parse import quote

from optbook._files import replace_text
from optbook.compare._runs import COLUMNS, OF_THE_RUN, runs

# What is weighed against what, where the runs recorded it: pairs of names and what stands along the axis.
QUALITY = "bits_per_byte", "bits per byte (less is better)"
SPEED = "writing_tokens_per_second", "tokens written per second"
MEMORY = "measured_generating_megabytes", "MB while generating"
TRADE_OFFS = ((SPEED, QUALITY), (MEMORY, QUALITY), (MEMORY, SPEED))

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 14px }}
th, td {{ padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }}
th {{ vertical-align: bottom }}
th:first-child, td:first-child {{ text-align: left }}
.failed, .missing {{ background: #f4f4f4; color: #555 }}
.error {{ white-space: normal; max-width: min(70em, 90vw); position: sticky; left: .7em }}
img {{ max-width: 100% }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{figure}
<div class="wide"><table>
{table}
</table></div>
{shared}
<p>All that was recorded: <a href="report.csv">report.csv</a>.</p>
</html>
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """The runs of a folder as one table; made by `table`.

    Attributes
    ----------
    rows : list of dict
        One for each run, in the order of their file names, all with the same columns: ``run`` (the file's name),
        ``state`` ("complete", "failed" or "missing"), the parameters, what was recorded, then ``seconds``,
        ``peak_memory`` in bytes, ``last_cell`` and ``error``. What a run has not got is None. A recorded dictionary has
        a column for each of its entries, called ``name.key``; a list is one cell. What was recorded under the name of
        a parameter, or of one of these columns, is called ``name (recorded)``.
    parameters : tuple of str
        Those of the columns that are parameters.
    """

    rows: list
    parameters: tuple

    @property
    def complete(self):
        """The rows of the complete runs."""
        return [row for row in self.rows if row["state"] == "complete"]

    @property
    def varied(self):
        """The parameters in which runs differ."""
        return [name for name in self.parameters if _differs(name, self.rows)]

    @property
    def compared(self):
        """The columns to be read side by side: varied parameters, and single numbers in which complete runs differ.

        Those of the figure come first.
        """
        done, first = self.complete, [name for name, _ in (QUALITY, SPEED, MEMORY)]
        single = [name for name in self._recorded if not any(isinstance(row[name], list) for row in done)]
        return self.varied + sorted(
            (name for name in single if _differs(name, done)), key=lambda name: name not in first
        )

    @property
    def shared(self):
        """What all complete runs have in common, by name: parameters and recorded numbers."""
        done = self.complete
        names = [name for name in (*self.parameters, *self._recorded) if name not in self.varied]
        return {name: done[0][name] for name in names if done and not _differs(name, done)}

    @property
    def _recorded(self):
        return [name for name in self.rows[0] if name not in (*COLUMNS, *self.parameters)]

    def figure(self):
        """Quality against speed, quality against memory, speed against memory: a point for each complete run.

        Runs of one preset are joined by a line (where it does not vary, runs that share the first varied parameter);
        the other parameters choose the marker.

        Returns
        -------
        matplotlib Figure, or None
            None when no run recorded a pair of these numbers.
        """
        from optbook import plot  # here: a sweep without a report shall not wait for it

        pairs = [pair for pair in TRADE_OFFS if any(_has_numbers(row, pair) for row in self.complete)]
        if not pairs:
            return None
        group = next((name for name in ("preset", *self.varied) if name in self.varied), "run")
        others = [name for name in self.varied if name != group]
        points = [
            {
                "group": str(row[group]),
                "kind": ", ".join(_text(row[name]) for name in others),
                **{name: row[name] for pair in pairs for name, _ in pair},
            }
            for row in self.complete
        ]
        return plot.trade_offs(points, pairs)

    def csv(self):
        """All columns, with a header; a list is JSON, and what a run has not got is empty."""
        file = io.StringIO()
        writer = csv.DictWriter(file, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            lists = {name: json.dumps(v, ensure_ascii=False) for name, v in row.items() if isinstance(v, list)}
            writer.writerow(row | lists)
        return file.getvalue()

    def html(self, title, links):
        """A page of its own: the figure, and the columns worth comparing.

        Parameters
        ----------
        title : str
        links : dict
            From a run's name to the address of its notebook; runs without one are not linked.
        """
        states = [row["state"] for row in self.rows]
        shared = "; ".join(f"{name} = {_text(value)}" for name, value in self.shared.items() if value is not None)
        names = ["run", "state", *self.compared, "seconds", "peak_memory"]
        lines = [
            "<tr>" + "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names) + "</tr>",
            *(self._line(number, row, names, links) for number, row in enumerate(self.rows, 1)),
        ]
        return PAGE.format(
            title=html.escape(title),
            summary=", ".join(f"{states.count(state)} {state}" for state in ("complete", "failed", "missing")),
            figure=_embedded(self.figure()),
            table="\n".join(lines),
            shared=f"<p>The same in all complete runs: {html.escape(shared)}.</p>" if shared else "",
        )

    def _line(self, number, row, names, links):
        """The cells of one run, the first its number; below a failed one, a line with its error."""
        cells = [str(number), *(html.escape(_text(row[name], name)) for name in names[1:])]
        if row["run"] in links:
            cells[0] = f'<a href="{html.escape(links[row["run"]])}" title="{html.escape(row["run"])}">run {number}</a>'
        line = f'<tr class="{row["state"]}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        if row["error"]:
            said = f'<td colspan="{len(names)}"><div class="error">{html.escape(row["error"])}</div></td>'
            line += f'\n<tr class="failed">{said}</tr>'
        return line


def table(folder):
    """Reads the runs of a folder into one table.

    Parameters
    ----------
    folder : path
        Where `sweep` put them.

    Raises
    ------
    ValueError
        If there are no runs in the folder.
    """
    found = runs(folder)
    if not found:
        raise ValueError(f"there are no runs in {folder}: name the folder that a sweep wrote into.")
    parameters = _in_order(run.parameters for run in found)
    rows = [
        {"run": run.path.name, "state": run.state}
        | run.parameters
        | {f"{name} (recorded)" if name in (*COLUMNS, *parameters) else name: v for name, v in _flat(run.record)}
        | {name: getattr(run, name) for name in OF_THE_RUN}
        for run in found
    ]
    recorded = [name for name in _in_order(rows) if name not in (*COLUMNS, *parameters)]
    columns = ["run", "state", *parameters, *recorded, *OF_THE_RUN]
    return Table([{name: row.get(name) for name in columns} for row in rows], tuple(parameters))


def report(folder):
    """Writes the table of a folder of runs into it: ``report.csv``, and ``report.html`` with pictures and links.

    The page needs no other file but the runs that it links. Both are written beside and renamed.

    Parameters
    ----------
    folder : path
        Where `sweep` put the runs.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ValueError
        If there are no runs in the folder.
    """
    folder = Path(folder)
    found = table(folder)
    names = [row["run"] for row in found.rows if (folder / row["run"]).is_file()]
    page = found.html(f"{len(found.rows)} runs in {folder.resolve().name}", {name: quote(name) for name in names})
    replace_text(folder / "report.csv", found.csv())
    replace_text(folder / "report.html", page)
    return folder / "report.html"


def _in_order(dictionaries):
    """All keys, each once, in the order of their first appearance."""
    return list(dict.fromkeys(name for dictionary in dictionaries for name in dictionary))


def _flat(numbers, prefix=""):
    """(name, value) pairs without dictionaries among the values."""
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _differs(name, rows):
    return any(row[name] != rows[0][name] for row in rows)


def _has_numbers(row, pair):
    return all(isinstance(row.get(name), int | float) for name, _ in pair)


def _text(value, name=""):
    """A cell for people: three or four digits of a measured number, bytes as megabytes."""
    if value is None:
        return "–"
    if name == "peak_memory":
        return f"{value / 1e6:,.0f} MB"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _embedded(picture):
    """A figure as part of a page."""
    if picture is None:
        return ""
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=150)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="Complete runs: quality, speed and memory, each against each" src="data:image/png;base64,{data}">'
