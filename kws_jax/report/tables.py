"""The parts of the page made of text: key figures, confusion, results, config."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from kws_jax.condition_names import CLEAN, FAR
from kws_jax.report import text
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.workdir import Measure, Run
from kws_jax.workdirs import in_bucket

_FRACTIONS = ("float_accuracy", "accuracy", "recall/", "frr@", "false_accept/")


def key_figures(run: Run) -> Markup | None:
    """Cards: accuracy, accuracy in the loudest noise, size, cost, time."""
    cards = [
        _accuracy_card(run.find("accuracy")),
        _noise_card(run),
        _parameters_card(run),
        _macs_card(run.size("macs")),
        _time_card(run),
        _speed_card(run.size("clips_per_second")),
    ]
    cards = [card for card in cards if card is not None]
    return tag("div", join(cards), class_="cards") if cards else None


def confusion(run: Run) -> Markup | None:
    """A confusion matrix per condition; the clean one open, the others folded."""
    if run.evaluation is None or not run.evaluation.get("confusion"):
        return None
    matrices = run.evaluation["confusion"]
    labels = [text.word(label) for label in run.evaluation["labels"]]
    first = CLEAN if CLEAN in matrices else next(iter(matrices))
    shown = [tag("p", tag("b", first), " test clips"), _matrix(labels, matrices[first])]
    others = [
        tag("div", tag("p", tag("b", condition)), _matrix(labels, matrix))
        for condition, matrix in matrices.items()
        if condition != first
    ]
    if others:
        title = f"The other conditions ({len(others)})"
        shown.append(tag("details", tag("summary", title), *others))
    return join(shown)


def results_table(run: Run) -> Markup | None:
    """All rows of results.json."""
    if not run.results:
        return None
    heads = (
        "stage",
        "split",
        "condition",
        "measure",
        "value",
        "95 % interval",
        "count",
    )
    head = tag("tr", join(tag("th", name, scope="col") for name in heads))
    rows = join(_result_row(measure) for measure in run.results)
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="results")
    return tag("div", table, class_="scroll")


def config_details(run: Run) -> Markup:
    """The config as folded text."""
    dump = json.dumps(run.config, indent=2, ensure_ascii=False)
    return tag("details", tag("summary", "config.json"), tag("pre", dump))


def reproduce(run: Run) -> Markup:
    """The commands that run, test again and use this experiment."""
    # An absolute path would tell the readers of a shared page about one machine only.
    folder = run.workdir
    if folder.is_absolute() and not in_bucket(folder):
        # That of a seed lies in the folder of the experiment.
        names = 2 if folder.name.startswith("seed-") else 1
        folder = Path("runs", *folder.parts[-names:])
    here, anew = shlex.quote(str(folder)), shlex.quote(f"{folder}-again")
    commands = [
        f"python -m kws_jax.evaluate --workdir={here}",
        f"python -m kws_jax.predict --workdir={here} CLIP.wav",
    ]
    told = "The last two commands test the trained network again and use it."
    if run.arguments:
        words = [shlex.quote(word) for word in run.arguments]
        lines = ["python -m kws_jax.main", *words, f"--workdir={anew}"]
        commands.insert(0, " \\\n    ".join(lines))
        told = f"The first command runs the experiment anew. {told}"
    shown = tag("pre", "\n".join(commands))
    return join([shown, tag("p", told, class_="note")])


def _card(value: str, name: str, detail: str = "") -> Markup:
    small = tag("span", detail, class_="detail") if detail else None
    return tag(
        "div",
        tag("span", name, class_="name"),
        tag("strong", value),
        *([small] if small else []),
        class_="card",
    )


def _accuracy_card(measure: Measure | None) -> Markup | None:
    if measure is None:
        return None
    clips = text.plural(measure.count, "clip") if measure.count else ""
    interval = text.interval(measure)
    detail = ", ".join(part for part in (interval, clips) if part)
    return _card(text.percent(measure.value), "Test accuracy", detail)


def _noise_card(run: Run) -> Markup | None:
    curves = {k: c for k, c in run.noise().items() if not k.startswith(FAR)}
    if not curves:
        return None
    kind, curve = next(iter(curves.items()))
    snr, measure = min(curve, key=lambda point: abs(point[0]))
    others = [
        f"{text.percent(m.value)} in {other}"
        for other, points in curves.items()
        for s, m in points
        if other != kind and s == snr
    ]
    detail = "; ".join([f"in {kind} noise", *others])
    return _card(text.percent(measure.value), f"Accuracy at {snr:g} dB SNR", detail)


def _parameters_card(run: Run) -> Markup | None:
    trained = run.size("parameters")
    if trained is None:
        return None
    stored = run.size("parameters_with_statistics")
    detail = f"{text.count(stored.value)} with batch statistics" if stored else ""
    return _card(text.count(trained.value), "Parameters", detail)


def _macs_card(measure: Measure | None) -> Markup | None:
    if measure is None:
        return None
    return _card(
        text.millions(measure.value), "MACs", "multiply-accumulates for a clip of 1 s"
    )


def _time_card(run: Run) -> Markup | None:
    rows = run.seconds()
    if not rows:
        return None
    detail = ", ".join(f"{m.stage} {text.duration(m.value)}" for m in rows)
    total = text.duration(sum(m.value for m in rows))
    return _card(total, "Training time", detail if len(rows) > 1 else "")


def _speed_card(measure: Measure | None) -> Markup | None:
    if measure is None:
        return None
    return _card(
        text.count(measure.value), "Clips a second", f"in stage {measure.stage}"
    )


def _matrix(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> Markup:
    columns = join(
        tag("th", tag("span", label), scope="col", class_="upright") for label in labels
    )
    corner = tag("th", "spoken ↓ heard →", class_="corner")
    total = tag("th", tag("span", "recall"), scope="col", class_="upright")
    head = tag("thead", tag("tr", corner, columns, total))
    rows = join(_matrix_row(labels, i, row) for i, row in enumerate(matrix))
    table = tag("table", head, tag("tbody", rows), class_="confusion")
    return tag("div", table, class_="scroll")


def _matrix_row(labels: Sequence[str], true: int, row: Sequence[int]) -> Markup:
    total = sum(row)
    cells = []
    for predicted, number in enumerate(row):
        share = number / total if total else 0.0
        told = f"{labels[true]} heard as {labels[predicted]}: {number} of {total}"
        cells.append(
            tag(
                "td",
                str(number) if number else "",
                class_=_cell_class(true == predicted, share),
                style=f"--p:{_shade(share)}",
                title=f"{told} ({text.percent(share)})",
            )
        )
    recall = row[true] / total if total else math.nan
    name = tag("th", labels[true], scope="row")
    return tag("tr", name, join(cells), tag("td", text.percent(recall), class_="sum"))


def _shade(share: float) -> int:
    """Per cent of colour; by the root, so that a confusion of 1 % can be seen."""
    return round(100 * math.sqrt(share))


def _cell_class(right: bool, share: float) -> str:
    kind = "right" if right else "wrong"
    return f"{kind} strong" if _shade(share) > 60 else kind


def _result_row(measure: Measure) -> Markup:
    texts = (measure.stage, measure.split, measure.condition, measure.metric)
    numbers = (
        _value(measure),
        _interval(measure),
        text.count(measure.count) if measure.count is not None else "",
    )
    return tag(
        "tr",
        join(tag("td", cell) for cell in texts),
        join(tag("td", cell, class_="number") for cell in numbers),
    )


def _interval(measure: Measure) -> str:
    if measure.interval and not measure.metric.startswith(_FRACTIONS):
        return text.bounds(*measure.interval)
    return text.interval(measure)


def _value(measure: Measure) -> str:
    if measure.metric.startswith(_FRACTIONS):
        return text.percent(measure.value, 2)
    if measure.metric == "seconds":
        return text.duration(measure.value)
    if abs(measure.value) >= 1000 or measure.value == round(measure.value):
        return text.count(measure.value)
    return f"{measure.value:.4g}"
