"""Charts as inline SVG that fit any width: positions across are shares of the width, heights and text are pixels.

So text is as large on a phone as on a desktop. Colours are CSS classes, which the style sheet of a page defines. Names
and texts are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

Point = tuple[float, float]
"""Across and up, in the units of the axes."""

LABEL_CHARACTERS = 40
"""About so many characters fit below an axis on a phone."""


# --- axes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """The values that an axis shows, from its start to its end."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the start of the axis, 1 at its end; values beyond it are put at the end."""
        low, high, at = ((math.log(end) if self.log else end) for end in (self.low, self.high, max(value, self.low)))
        return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def holds(self, value: float) -> bool:
        """Whether a value lies on the axis."""
        return self.low <= value <= self.high

    def ticks(self, count: int = 5) -> list[float]:
        """About so many round values on the axis; on a logarithmic one powers of ten, or its ends if there is none."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(math.ceil((last - first + 1) / count), 1)
            return [10.0**power for power in range(first, last + 1, every)] or [self.low, self.high]
        step = _round_step((self.high - self.low) / max(count, 1))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


MARGIN = 0.05
"""Share of its range that an axis leaves free at either end."""


def axis_of(values: Iterable[float]) -> Axis:
    """An axis on which all finite values lie, with some margin; from 0 to 1 if there are none."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Axis(0.0, 1.0)
    low, high = min(known), max(known)
    room = MARGIN * (high - low) or abs(high) * MARGIN or 1.0
    return Axis(low - room, high + room)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not smaller."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= least * (1 - 1e-9)), 10 * power)


def tick_text(value: float) -> str:
    """A value beside an axis: `1,000`, `0.45`, `1e-05`."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4f}".rstrip("0").rstrip(".") if value % 1 else f"{value:,.0f}"
    return f"{value:.0e}"


# --- a plot -----------------------------------------------------------------------------------------------------------


class Plot:
    """A plot with two axes; what is drawn later lies above.

    Args:
        across: the horizontal axis.
        up: the vertical axis.
        label: what the plot shows, in a few words, for those who do not see it.
        height: of the plot without its labels, in pixels.
        whole: horizontal ticks are whole numbers.
    """

    def __init__(self, across: Axis, up: Axis, label: str, *, height: int = 260, whole: bool = False) -> None:
        self._across, self._up, self._label, self._height = across, up, label, height
        self._marks: list[Markup] = []
        ticks = [tick for tick in across.ticks() if not whole or tick == round(tick)]
        self._grid = [*map(self._row, up.ticks(max(height // 50, 2))), *map(self._column, ticks)]

    def line(self, points: Sequence[Point], style: str, title: str = "") -> None:
        """Draw a line through the points."""
        self._path([f"{self._x(x)},{self._y(y)}" for x, y in points], style, title)

    def steps(self, points: Sequence[Point], style: str) -> None:
        """Draw a line that keeps the height of a point until the next one."""
        parts = [f"{self._x(x)},{self._y(y)}" for x, y in points[:1]]
        for (_, before), (x, y) in pairwise(points):
            parts += [f"{self._x(x)},{self._y(before)}"] + ([f"{self._x(x)},{self._y(y)}"] if y != before else [])
        self._path(parts, style, "")

    def level(self, value: float, style: str, title: str = "") -> None:
        """Draw a line across the whole plot; nothing if the value is not on the axis."""
        if self._up.holds(value):
            at = _percent(1 - self._up.share(value))
            self._line(style, ("0", "100%"), (at, at), title)

    def vertical(self, value: float, style: str, title: str = "") -> None:
        """Draw a line from the bottom to the top."""
        at = _percent(self._across.share(value))
        self._line(style, (at, at), ("0", "100%"), title)

    def dot(self, x: float, y: float, style: str, title: str = "", *, radius: float = 3.5) -> None:
        """Draw a dot; one that is beyond the axis lies on its end."""
        across, up = _percent(self._across.share(x)), _percent(1 - self._up.share(y))
        mark = Markup('<circle class="{}" cx="{}" cy="{}" r="{:g}">{}</circle>')
        self._marks.append(mark.format(style, across, up, radius, _title(title)))

    def range(self, x: float, low: float, high: float, style: str, title: str = "") -> None:
        """Draw an interval of the vertical axis."""
        across, bottom, top = (
            _percent(share) for share in (self._across.share(x), 1 - self._up.share(low), 1 - self._up.share(high))
        )
        self._line(style, (across, across), (bottom, top), title)

    def svg(self) -> Markup:
        """The plot as SVG."""
        return _svg("plot", self._height, self._label, [*self._grid, *self._marks])

    def _path(self, points: Sequence[str], style: str, title: str) -> None:
        if len(points) > 1:
            self._marks.append(_stretched(f"M{'L'.join(points)}", 1000, 1000, style, title))

    def _line(self, style: str, across: tuple[str, str], up: tuple[str, str], title: str) -> None:
        mark = Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}">{}</line>')
        self._marks.append(mark.format(style, *across, *up, _title(title)))

    def _x(self, value: float) -> str:
        return f"{1000 * self._across.share(value):.0f}"

    def _y(self, value: float) -> str:
        return f"{1000 * (1 - self._up.share(value)):.0f}"

    def _row(self, value: float) -> Markup:
        at = _percent(1 - self._up.share(value))
        return Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>'
            '<text class="tick" x="0" dx="-8" y="{0}" dy="4" text-anchor="end">{1}</text>'
        ).format(at, tick_text(value))

    def _column(self, value: float) -> Markup:
        return Markup('<text class="tick" x="{0}" y="100%" dy="18" text-anchor="middle">{1}</text>').format(
            _percent(self._across.share(value)), tick_text(value)
        )


# --- a row of a table -------------------------------------------------------------------------------------------------


def strip(
    axis: Axis,
    label: str,
    *,
    interval: Sequence[float] | None = None,
    value: float | None = None,
    dots: Sequence[tuple[float, str]] = (),
    zero: bool = False,
    zero_label: bool = False,
) -> Markup:
    """A row of a table as a picture: an interval, a value in it, and single values.

    Args:
        axis: the same for all rows.
        label: what it shows, in words.
        interval: low and high end.
        value: drawn as a large dot, or as a tick if there are single values.
        dots: single values, and what is said of each.
        zero: also draw where 0 is.
        zero_label: also write a 0 above it; for the first row.
    """
    marks = [Markup('<line class="rail" x1="0" x2="100%" y1="10" y2="10"/>')]
    if zero and axis.holds(0.0):
        marks.append(_line("zero", axis.share(0.0), axis.share(0.0), -4, 24))
        if zero_label:
            marks.append(Markup('<text class="tick" x="{}" y="-7" text-anchor="middle">0</text>').format(
                _percent(axis.share(0.0))))  # fmt: skip
    if interval is not None:
        marks.append(_line("range", axis.share(interval[0]), axis.share(interval[1]), 10, 10))
    if value is not None and dots:
        marks.append(_line("mean", axis.share(value), axis.share(value), 2, 18))
    for single, text in dots:
        marks.append(Markup('<circle class="single" cx="{}" cy="10" r="3.5">{}</circle>').format(
            _percent(axis.share(single)), _title(text)))  # fmt: skip
    if value is not None and not dots:
        marks.append(Markup('<circle cx="{}" cy="10" r="5"/>').format(_percent(axis.share(value))))
    return _svg("whisker", 20, label, marks)


def bar(share: float, label: str) -> Markup:
    """A share of 1 as a horizontal bar."""
    marks = [
        Markup('<rect class="bar-back" y="4" width="100%" height="10"/>'),
        Markup('<rect class="bar-fill" y="4" width="{}" height="10"/>').format(_percent(min(max(share, 0.0), 1.0))),
    ]
    return _svg("bar", 18, label, marks)


def _line(style: str, start: float, end: float, top: int, bottom: int) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        style, _percent(start), _percent(end), top, bottom
    )


# --- parallel coordinates ---------------------------------------------------------------------------------------------

LANE = 58
"""Pixels from one axis to the next."""
ABSENT = 0.0
"""Where a line crosses the axis of a parameter that its trial does not have."""
START = 0.08
"""Where an axis starts; left of it, there is room for trials that do not have the parameter."""


@dataclass(frozen=True)
class Lane:
    """One axis of parallel coordinates."""

    name: str
    labels: Sequence[tuple[float, str]]
    """Shares of the axis, and what stands there."""
    may_be_absent: bool = False


@dataclass(frozen=True)
class Strand:
    """One line through the axes."""

    shares: Sequence[float | None]
    """Where it crosses each axis; None if it has no value there."""
    style: str
    title: str
    first: int = 0
    """The axis at which it starts."""


def parallel(lanes: Sequence[Lane], strands: Iterable[Strand], label: str) -> Markup:
    """Parallel coordinates: the axes lie below each other, so that there is room for their names at any width."""
    height = LANE * len(lanes)
    marks = [_lane(lane, LANE * row + LANE // 2) for row, lane in enumerate(lanes)]
    lines = []
    for strand in strands:
        points = [
            f"{1000 * (ABSENT if share is None else START + (1 - START) * share):.0f},{LANE * row + LANE // 2}"
            for row, share in enumerate(strand.shares)
            if row >= strand.first
        ]
        lines.append(_stretched(f"M{'L'.join(points)}", 1000, height, strand.style, strand.title))
    return _svg("lanes", height, label, [*lines, *marks])


def _lane(lane: Lane, at: int) -> Markup:
    axis = Markup(
        '<line class="lane" x1="{}" x2="100%" y1="{}" y2="{}"/><text class="name" x="0" y="{}">{}</text>'
    ).format(_percent(START), at, at, at - 10, lane.name)
    if lane.may_be_absent:
        axis += Markup('<circle class="absent" cx="0" cy="{}" r="3"><title>not a parameter of the trial</title>'
                       "</circle>").format(at)  # fmt: skip
    room = max(LABEL_CHARACTERS // max(len(lane.labels), 1), 3)
    for share, text in lane.labels:
        anchor = "start" if share < 0.01 else "end" if share > 0.99 else "middle"
        axis += Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}{}</text>').format(
            _percent(START + (1 - START) * share), at + 16, anchor, shortened(text, room), _title(text)
        )
    return axis


# --- parts ------------------------------------------------------------------------------------------------------------


def shortened(text: str, most: int) -> str:
    """The text, cut in its middle if it has more characters than that."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[: most - 1 - half]}…{text[len(text) - half :] if half else ''}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _title(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text) if text else Markup("")


def _svg(style: str, height: int, label: str, marks: Sequence[Markup]) -> Markup:
    return Markup('<svg class="{}" width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        style, height, label, Markup("").join(marks)
    )


def _stretched(path: str, width: int, height: int, style: str, title: str) -> Markup:
    """A path in a picture of its own, which is stretched to the width; its stroke is not."""
    return Markup(
        '<svg class="stretched" viewBox="0 0 {} {}" preserveAspectRatio="none"><path class="{}" d="{}">{}</path></svg>'
    ).format(width, height, style, path, _title(title))


def swatch(style: str, kind: str) -> Markup:
    """A sample for a legend: `dot` or `line`."""
    shapes = {"dot": '<circle class="{}" cx="11" cy="7" r="4"/>', "line": '<path class="{}" d="M0,7L22,7"/>'}
    return Markup('<svg class="swatch" width="22" height="14" aria-hidden="true">{}</svg>').format(
        Markup(shapes[kind]).format(style)  # noqa: S704  (our own shapes)
    )
