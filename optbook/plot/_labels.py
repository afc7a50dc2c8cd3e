"""Token labels that can be drawn: only characters the font has, and only as many as there is room for."""

import functools
import math

import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.ticker import LogFormatter

from optbook.tokens import visible

SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"  # they come with matplotlib: the same picture on every machine
SIZE = 7.5  # points
LINE = SIZE * 1.17 / 72  # inches from one label to the next
LONGEST = 14  # characters of a label beside a map


@functools.cache
def _font(family):
    return ft2font.FT2Font(font_manager.findfont(family))


@functools.cache
def _characters(family):
    return frozenset(_font(family).get_charmap())


def drawable(label, family=SANS, longest=None):
    """A label in characters that the font can draw.

    What it lacks (Chinese, most emoji) is written by its number, as ``⟨U+6F22⟩``, since an empty box would say nothing.
    So is what nobody would see (`optbook.tokens.visible`). Longer than ``longest``, it ends in ``…``.
    """
    has = _characters(family)
    text = "".join(c if ord(c) in has else f"⟨U+{ord(c):04X}⟩" for c in visible(label))
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"


def name_lines(name):
    """A name at an axis or in a legend, drawable; it may have several lines."""
    return "\n".join(map(drawable, str(name).split("\n")))


class PlainLogFormatter(LogFormatter):
    """Labels the ticks that matplotlib labels on a logarithmic axis, without a formula: 0.001, not 10 to the -3."""

    def __call__(self, x, pos=None):
        return f"{x:g}" if super().__call__(x, pos) else ""


def round_steps(start, stop, most):
    """Positions at a round step, at most ``most`` of them."""
    step = next(step for step in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if (stop - start) / step <= most)
    return np.arange(-(-start // step) * step, stop, step)


def fits(labels, inches):
    return len(labels) <= inches / LINE


def reach(labels, inches):
    """How far, in inches, the labels stand out from an axis of that length; for numbers of positions, a little."""
    written = [drawable(label, longest=LONGEST) for label in labels] if fits(labels, inches) else ["0000"]
    return 0.1 + math.ceil(max(map(_inches, written)) * 20) / 20  # rounded: a figure's size is the same everywhere


def _inches(text):
    font = _font(SANS)
    font.set_size(SIZE, 72)
    font.set_text(text, 0.0, flags=ft2font.LoadFlags.NO_HINTING)
    return font.get_width_height()[0] / 64 / 72  # the font counts in 64ths of a point


def label_axis(axis, labels, real, start, inches, vertical=False):
    """Each token's label at its position; where they would overlap, numbers of positions at a round step.

    Parameters
    ----------
    axis : matplotlib's XAxis or YAxis
        In token positions.
    labels, real : list of str, array of bool
        Padding gets grey labels.
    start : int
        Position of the first.
    inches : float
        Length of the axis.
    vertical : bool
        Write upwards, for an axis that runs across.
    """
    if fits(labels, inches):
        written = [drawable(label, longest=LONGEST) for label in labels]
        axis.set_ticks(range(start, start + len(labels)), written, fontsize=SIZE, rotation=90 if vertical else 0)
        for text, is_real in zip(axis.get_ticklabels(), real):
            text.set_color("black" if is_real else "0.5")
    else:
        places = round_steps(start, start + len(labels), max(inches / 0.35, 1))
        axis.set_ticks(places, [str(place) for place in places], fontsize=SIZE)
    axis.set_tick_params(length=0)
