"""What several seeds of one experiment gave: a page, and a table in the terminal.

Both are made of the workdir's config.json and results.json, which holds the means.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kws_jax.condition_names import FAR
from kws_jax.report import false_accepts, noise_curves, tables, text
from kws_jax.report.document import document
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.page import FILE_NAME
from kws_jax.report.workdir import Measure, Run, read_run
from kws_jax.workdirs import write_whole

_NOTE = (
    "Means over the seeds, with Student's 95 % interval of the mean, as far as it lies "
    "within 0 and 100 %, and none where all seeds agree. It tells what other seeds of "
    "weights and dropout would give on the same batches and test clips; what other "
    "clips, or other unheard words, would give is in the intervals of each seed's own "
    "report."
)
_UNHEARD_NOTE = (
    "Unheard words are those of config.data.unheard_words; a rare one has fewer than "
    "twenty clips of test speakers, and is tested on the clips of all speakers."
)
_NOISE_NOTE = (
    "“Seen” is noise from where training has its noise, in recordings or seconds that "
    "it never heard; “unseen” are kinds kept for the test."
)
_FAR_NOTE = " Far clips are heard through rooms that training never heard."
# Metric -> where in continuous audio keywords are missed.
_MISSED = {
    "frr@1fa/h": "at 1 false alarm an hour",
    "frr@10fa/h": "at 10 false alarms an hour",
}
_ACCURACY = "test accuracy"
_REJECTS = "keywords missed in continuous audio"
_ACCEPTS = "taken for a keyword"
_SIZE = "size and time"
# More seeds than this are no longer told one by one in the terminal.
_MOST_EACH = 5
# Counts and sizes, which are no shares: what they are called, and how written.
_SIZES: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", text.count),
    "macs": ("MACs a clip", text.millions),
    "weight_bits": ("mean bits of a weight", "{:.2f}".format),
    "activation_bits": ("mean bits of an activation", "{:.2f}".format),
    "seconds": ("training time", text.duration),
}


@dataclasses.dataclass(frozen=True)
class _Line:
    """A measure as it is shown: its name, mean, interval, and each seed's value.

    Lines of one `group` are shown together, under its name.
    """

    group: str
    name: str
    mean: str
    interval: str
    each: tuple[str, ...]


def write_page(folder: Path, members: Sequence[Path]) -> None:
    """Writes `folder/report.html`; `members` are the workdirs of the seeds."""
    run, each_of = _read(folder)
    title = str(run.config.get("name") or "Keyword spotting")
    seeds = [member.name.removeprefix("seed-") for member in members]
    each = [f"seed {seed}" for seed in seeds]
    heads = ["", "mean", "95 % interval", *each]
    links = [
        tag("a", f"seed {seed}", href=f"{member.name}/{FILE_NAME}")
        for seed, member in zip(seeds, members, strict=True)
    ]
    unheard = run.find(f"{false_accepts.METRIC}unheard")
    main = tag(
        "main",
        tag("header", tag("h1", title), tag("p", f"{len(seeds)} seeds", class_="lead")),
        tag("nav", join(links), aria_label="Reports of the seeds"),
        tag("p", _NOTE, class_="note"),
        tag("div", _html_table(heads, list(_lines(run, each_of))), class_="scroll"),
        join([tag("p", _UNHEARD_NOTE, class_="note")] if unheard else []),
        _in_noise(run, each_of),
        tables.config_details(run),
    )
    page = document(f"{title} – {len(seeds)} seeds", main)
    write_whole(folder / FILE_NAME, page.encode())


def print_summary(folder: Path, members: Sequence[Path], console: Console) -> None:
    """Prints the means with their intervals, and where the reports are."""
    run, each_of = _read(folder)
    table = Table(title=Text(str(run.config.get("name") or ""), style="bold"))
    table.add_column("test")
    table.add_column(f"mean of {len(members)} seeds", justify="right", style="bold")
    table.add_column("95 % interval", justify="right")
    told = members if len(members) <= _MOST_EACH else ()
    for member in told:
        table.add_column(member.name, justify="right", style="dim")
    group = ""
    for line in _lines(run, each_of):
        if line.group != group:
            group = line.group
            table.add_section()
            table.add_row(Text(group, style="italic"))
        each = line.each[: len(told)]
        table.add_row(Text(f"  {line.name}"), line.mean, line.interval, *each)
    console.print(table)
    report = Text.assemble(("report: ", "dim"), str(folder / FILE_NAME))
    console.print(report, soft_wrap=True)


def _read(folder: Path) -> tuple[Run, dict[Measure, Sequence[float]]]:
    """The means, and the values of the seeds behind each of them."""
    run = read_run(folder)
    rows = json.loads((folder / "results.json").read_text())
    each = [row["each"] for row in rows]
    return run, dict(zip(run.results, each, strict=True))


def _lines(run: Run, each_of: Mapping[Measure, Sequence[float]]) -> Iterator[_Line]:
    tested = {m: each for m, each in each_of.items() if m.split == "test"}
    for measure, each in tested.items():
        if measure.metric == "accuracy":
            yield _share(_ACCURACY, measure.condition, measure, each)
    for measure, each in tested.items():
        if measure.metric in _MISSED:
            name = f"{measure.condition}, {_MISSED[measure.metric]}"
            yield _share(_REJECTS, name, measure, each)
    for kind, name in false_accepts.SHORT_NAMES.items():
        for measure, each in tested.items():
            if measure.metric == f"{false_accepts.METRIC}{kind}":
                yield _share(_ACCEPTS, name, measure, each)
    for measure, each in each_of.items():
        known = measure.metric in _SIZES
        if known and (measure.stage == run.final_stage or measure.metric == "seconds"):
            yield _size(measure, each)


def _in_noise(run: Run, each_of: Mapping[Measure, Sequence[float]]) -> Markup | None:
    """Accuracy against the SNR in each kind of noise, where it was tested in noise."""
    curves = {
        kind: [{snr: each_of[measure] for snr, measure in curve}]
        for kind, curve in run.noise().items()
    }
    drawn = noise_curves.draw(["mean of the seeds"], curves)
    if drawn is None:
        return None
    note = _NOISE_NOTE + (_FAR_NOTE if any(k.startswith(FAR) for k in curves) else "")
    title = tag("h2", "Accuracy in noise")
    return tag("section", title, tag("p", note, class_="note"), drawn)


def _share(group: str, name: str, measure: Measure, values: Sequence[float]) -> _Line:
    shown = tuple(text.percent(value) for value in values)
    if measure.interval:
        low, high = measure.interval
        # Seeds that agree, as where none hears a keyword in silence, tell no spread.
        bounds = (max(low, 0.0), min(high, 1.0)) if low < high else None
        measure = dataclasses.replace(measure, interval=bounds)
    mean = text.percent(measure.value)
    return _Line(group, name, mean, text.interval(measure), shown)


def _size(measure: Measure, values: Sequence[float]) -> _Line:
    name, write = _SIZES[measure.metric]
    if measure.metric == "seconds":
        name += f", {measure.stage}"
    return _Line(_SIZE, name, write(measure.value), "", tuple(map(write, values)))


def _html_table(heads: Sequence[str], lines: Sequence[_Line]) -> Markup:
    head = tag("tr", join(tag("th", name, scope="col") for name in heads))
    groups = []
    for group, of_group in itertools.groupby(lines, lambda line: line.group):
        named = tag("th", group, scope="rowgroup", colspan=len(heads), class_="group")
        rows = join(map(_html_row, of_group))
        groups.append(tag("tbody", tag("tr", named), rows))
    return tag("table", tag("thead", head), join(groups), class_="noise")


def _html_row(line: _Line) -> Markup:
    return tag(
        "tr",
        tag("th", line.name, scope="row"),
        tag("td", tag("b", line.mean)),
        tag("td", line.interval),
        join(tag("td", value) for value in line.each),
    )
