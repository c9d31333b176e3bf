"""What several seeds of one experiment gave: a page, and a table in the terminal.

Both are made of the workdir's config.json and results.json, which holds the means.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kws_jax.report import tables, text
from kws_jax.report.document import document
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.page import FILE_NAME
from kws_jax.report.workdir import Measure, Run, read_run
from kws_jax.workdirs import write_whole

_NOTE = (
    "Means over the seeds, with Student's 95 % interval of the mean, as far as it lies "
    "within 0 and 100 %. It tells what other seeds of weights and dropout would give "
    "on the same batches and test clips; what other clips would give is in the "
    "intervals of each seed's own report."
)
_MISSED = {
    "frr@1fa/h": "missed at 1 false alarm an hour",
    "frr@10fa/h": "missed at 10 false alarms an hour",
}
# More seeds than this are no longer told one by one in the terminal.
_MOST_EACH = 5
# Counts and sizes, which are no shares: what they are called, and how written.
_SIZES: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", text.count),
    "macs": ("multiply-adds a clip", text.millions),
    "weight_bits": ("mean bits of a weight", "{:.2f}".format),
    "activation_bits": ("mean bits of an activation", "{:.2f}".format),
    "seconds": ("training time", text.duration),
}


@dataclasses.dataclass(frozen=True)
class _Line:
    """A measure as it is shown: its name, mean, interval, and each seed's value."""

    name: str
    mean: str
    interval: str
    each: tuple[str, ...]


def write_page(folder: Path, members: Sequence[Path]) -> None:
    """Writes `folder/report.html`; `members` are the workdirs of the seeds."""
    run, lines = _read(folder)
    title = str(run.config.get("name") or "Keyword spotting")
    seeds = [member.name.removeprefix("seed-") for member in members]
    each = [f"seed {seed}" for seed in seeds]
    heads = ["test accuracy", "mean", "95 % interval", *each]
    links = [
        tag("a", f"seed {seed}", href=f"{member.name}/{FILE_NAME}")
        for seed, member in zip(seeds, members, strict=True)
    ]
    main = tag(
        "main",
        tag("header", tag("h1", title), tag("p", f"{len(seeds)} seeds", class_="lead")),
        tag("nav", join(links), aria_label="Reports of the seeds"),
        tag("p", _NOTE, class_="note"),
        tag("div", _html_table(heads, lines), class_="scroll"),
        tables.config_details(run),
    )
    page = document(f"{title} – {len(seeds)} seeds", main)
    write_whole(folder / FILE_NAME, page.encode())


def print_summary(folder: Path, members: Sequence[Path], console: Console) -> None:
    """Prints the means with their intervals, and where the reports are."""
    run, lines = _read(folder)
    table = Table(title=Text(str(run.config.get("name") or ""), style="bold"))
    table.add_column("test")
    table.add_column(f"mean of {len(members)} seeds", justify="right", style="bold")
    table.add_column("95 % interval", justify="right")
    told = members if len(members) <= _MOST_EACH else ()
    for member in told:
        table.add_column(member.name, justify="right", style="dim")
    for line in lines:
        each = line.each[: len(told)]
        table.add_row(Text(line.name), line.mean, line.interval, *each)
    console.print(table)
    report = Text.assemble(("report: ", "dim"), str(folder / FILE_NAME))
    console.print(report, soft_wrap=True)


def _read(folder: Path) -> tuple[Run, list[_Line]]:
    run = read_run(folder)
    rows = json.loads((folder / "results.json").read_text())
    return run, list(_lines(run, [row["each"] for row in rows]))


def _lines(run: Run, each: Sequence[Sequence[float]]) -> Iterator[_Line]:
    for measure, values in zip(run.results, each, strict=True):
        if measure.metric == "accuracy" and measure.split == "test":
            yield _share(measure.condition, measure, values)
        elif measure.metric in _MISSED and measure.split == "test":
            name = f"{measure.condition}: {_MISSED[measure.metric]}"
            yield _share(name, measure, values)
    last = run.final_stage
    for measure, values in zip(run.results, each, strict=True):
        known = measure.metric in _SIZES
        if known and (measure.stage == last or measure.metric == "seconds"):
            yield _size(measure, values)


def _share(name: str, measure: Measure, values: Sequence[float]) -> _Line:
    shown = tuple(text.percent(value) for value in values)
    if measure.interval:
        low, high = measure.interval
        interval = (max(low, 0.0), min(high, 1.0))
        measure = dataclasses.replace(measure, interval=interval)
    return _Line(name, text.percent(measure.value), text.interval(measure), shown)


def _size(measure: Measure, values: Sequence[float]) -> _Line:
    name, write = _SIZES[measure.metric]
    if measure.metric == "seconds":
        name += f", {measure.stage}"
    return _Line(name, write(measure.value), "", tuple(map(write, values)))


def _html_table(heads: Sequence[str], lines: Sequence[_Line]) -> Markup:
    head = tag("tr", join(tag("th", name, scope="col") for name in heads))
    rows = [
        tag(
            "tr",
            tag("th", line.name, scope="row"),
            tag("td", tag("b", line.mean)),
            tag("td", line.interval),
            join(tag("td", value) for value in line.each),
        )
        for line in lines
    ]
    return tag("table", tag("thead", head), tag("tbody", join(rows)), class_="noise")
