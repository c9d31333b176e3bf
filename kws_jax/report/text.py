"""How numbers and names are written for people."""

import math

from kws_jax.report.workdir import Measure


def percent(value: float, digits: int = 1) -> str:
    """0.9637 -> '96.4 %'."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "–"


def interval(measure: Measure) -> str:
    """The 95 % interval of a fraction: '95.8 – 96.9 %', or '' where there is none."""
    if measure.interval is None:
        return ""
    low, high = measure.interval
    return f"{100 * low:.1f} – {100 * high:.1f} %"


def bounds(low: float, high: float) -> str:
    """An interval of numbers that are no fractions: '0.242 – 8.77'."""
    return f"{low:.3g} – {high:.3g}"


def count(value: float) -> str:
    """123456 -> '123,456'."""
    return f"{round(value):,}" if math.isfinite(value) else "–"


def millions(value: float) -> str:
    """3280000 -> '3.28 M'; below 10,000 in full."""
    return f"{value / 1e6:.2f} M" if value >= 10_000 else count(value)


def duration(seconds: float) -> str:
    """725.2 -> '12 min 5 s'."""
    if not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def word(label: str) -> str:
    """A label as it is read: '_unknown_' -> 'unknown'."""
    return label.strip("_") or label


def plural(number: float, noun: str) -> str:
    """(1, 'clip') -> '1 clip', (2000, 'clip') -> '2,000 clips'."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"
