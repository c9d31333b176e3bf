"""The part of the report on what is no keyword and is taken for one."""

from collections.abc import Iterator

from kws_jax.report import text
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.workdir import Measure, Run

METRIC = "false_accept/"
_NAMES = {
    "heard": "other words, of which training hears some",
    "unheard": "words that training never hears",
    "unheard_rare": "of these, the rare ones",
    "background": "background without speech",
}
SHORT_NAMES = {
    "heard": "other words",
    "unheard": "unheard words",
    "unheard_rare": "rare unheard words",
    "background": "background",
}
# More words than this would make the table longer than it is telling.
_MOST_WORDS = 40


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """A line for the terminal: how much of each kind is taken for a keyword."""
    found = _measures(run)
    shown = [
        f"{name} {_with_interval(found[kind])}"
        for kind, name in SHORT_NAMES.items()
        if kind in found
    ]
    if shown:
        yield "taken for a keyword", ", ".join(shown)


def section(run: Run) -> Markup | None:
    """A table of the kinds, then of each unheard word if they are few."""
    found = _measures(run)
    if not found:
        return None
    words = {name: m for name, m in found.items() if name.startswith("unheard/")}
    rows = [_row(_NAMES[name], found[name]) for name in _NAMES if name in found]
    if len(words) <= _MOST_WORDS:
        ordered = sorted(words.items(), key=lambda item: -item[1].value)
        rows += [_row(f"“{name.partition('/')[2]}”", m) for name, m in ordered]
    heads = ("what was heard", "clips", "taken for a keyword", "95 % interval")
    head = tag("tr", join(tag("th", name, scope="col") for name in heads))
    table = tag("table", tag("thead", head), tag("tbody", join(rows)), class_="results")
    return tag("div", table, class_="scroll")


def _with_interval(measure: Measure) -> str:
    share, interval = text.percent(measure.value), text.interval(measure)
    return f"{share} ({interval})" if interval else share


def _measures(run: Run) -> dict[str, Measure]:
    return {
        measure.metric.removeprefix(METRIC): measure
        for measure in run.final()
        if measure.metric.startswith(METRIC)
    }


def _clips(measure: Measure) -> str:
    """How many clips, and of how many words where these are counted together."""
    clips = text.count(measure.count or 0)
    if not measure.words:
        return clips
    return f"{clips} of {text.plural(len(measure.words), 'word')}"


def _row(name: str, measure: Measure) -> Markup:
    cells = (
        name,
        _clips(measure),
        text.percent(measure.value),
        text.interval(measure),
    )
    return tag("tr", join(tag("td", cell) for cell in cells))
