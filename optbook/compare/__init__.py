"""One notebook over many presets: papermill runs it with every combination of values, and one table compares them."""

from optbook._files import temporary_folder
from optbook.compare._record import read_record, record
from optbook.compare._runs import Run, runs
from optbook.compare._sweep import sweep
from optbook.compare._table import Table, report, table

__all__ = ["Run", "Table", "read_record", "record", "report", "runs", "sweep", "table", "temporary_folder"]
