"""Plots as SVG, by hand: a strip of points, a box from quartile to quartile, a line at the median."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Final

from integration.bench.results import Claim, Measured, Series

WIDTH, LABEL, RIGHT, ROW, AXIS, TOP = 1000, 480, 30, 22, 30, 14
SPAN: Final = WIDTH - LABEL - RIGHT
#: The plot of aims ends at a tenth and ten times the aim.
DECADE: Final = 10.0
INK, BOX, DOT, GRID = "#24292f", "#9ec5f4", "#1f6feb", "#d0d7de"


def boxes(measured: Measured) -> str:
    """A panel for each unit, with an axis of its own from zero on."""
    parts: list[str] = []
    y = TOP
    for unit, items in groupby(measured.items(), key=lambda item: item[1].unit):
        panel = dict(items)
        parts += _panel(panel, unit, y)
        y += len(panel) * ROW + AXIS
    return _svg(parts, y)


def aims(claims: Sequence[tuple[Claim, Measured]]) -> str:
    """Measured in relation to the aim, on a logarithmic axis: what is left of the line is met."""
    height = len(claims) * ROW
    parts = [
        _line(x, TOP, x, TOP + height, GRID if share != 1 else INK)
        + _text(x, TOP + height + 16, "aim" if share == 1 else f"{share:g} ×", "middle")
        for share in (0.1, 0.2, 0.5, 1, 2, 5, 10)
        for x in [_log(share)]
    ]
    for number, (claim, measured) in enumerate(claims):
        assert claim.aim is not None
        shares = [claim.aim / one if claim.at_least else one / claim.aim for one in claim.of(measured).values]
        parts += _row(claim.name, [_log(share) for share in shares], TOP + number * ROW)
    return _svg(parts, TOP + height + AXIS)


def _panel(series: Mapping[str, Series], unit: str, top: float) -> Iterator[str]:
    most = max(max(one.values) for one in series.values()) or 1.0
    bottom = top + len(series) * ROW
    for tick in ticks(most):
        x = LABEL + SPAN * tick / most
        yield _line(x, top, x, bottom, GRID) + _text(x, bottom + 14, f"{tick:g} {unit}", "middle")
    for number, (name, one) in enumerate(series.items()):
        yield from _row(name, [LABEL + SPAN * value / most for value in one.values], top + number * ROW)


def ticks(most: float) -> list[float]:
    """At most six round numbers from 0 to ``most``."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(number * step, 12) for number in range(int(most / step) + 1)]


def _row(name: str, xs: Sequence[float], top: float) -> Iterator[str]:
    middle = top + ROW / 2
    yield _text(LABEL - 8, middle + 4, name, "end")
    low, median, high = Series("", xs).quartiles
    width = max(high - low, 1)
    yield f'<rect x="{low:.1f}" y="{middle - 6:.1f}" width="{width:.1f}" height="12" fill="{BOX}"/>'
    yield from (f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="2.2" fill="{DOT}" fill-opacity="0.55"/>' for x in xs)
    yield _line(median, middle - 8, median, middle + 8, INK)


def _log(share: float) -> float:
    share = min(max(share, 1 / DECADE), DECADE)
    return LABEL + SPAN * (math.log10(share) + 1) / 2


def _line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *parts, "</svg>", ""])
