"""Pictures for the chapters. Every function returns a matplotlib Figure; none of them shows or saves it."""

from optbook.plot.attention import head, heads, model
from optbook.plot.charts import bar_groups, bars, histograms, lines, matrices, shares, texts, trade_offs
from optbook.plot.masking import masks, stages
from optbook.plot.reading import tokens
from optbook.plot.summaries import entropy, roles
from optbook.plot.token_pieces import piece_rows, pieces

__all__ = [
    "bar_groups",
    "bars",
    "entropy",
    "head",
    "heads",
    "histograms",
    "lines",
    "masks",
    "matrices",
    "model",
    "piece_rows",
    "pieces",
    "roles",
    "shares",
    "stages",
    "texts",
    "tokens",
    "trade_offs",
]
