"""Pictures for the chapters. Every function returns a matplotlib Figure; none of them shows or saves it."""

from optbook.plot.attention import head, heads, masks, stages
from optbook.plot.charts import bars, histograms, lines, matrices, shares, texts
from optbook.plot.tokens import piece_rows, pieces

__all__ = [
    "bars",
    "head",
    "heads",
    "histograms",
    "lines",
    "masks",
    "matrices",
    "piece_rows",
    "pieces",
    "shares",
    "stages",
    "texts",
]
