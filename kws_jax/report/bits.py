"""The bits of each layer, of its weights and of its input, drawn."""

from collections.abc import Iterator

from kws_jax.condition_names import CLEAN
from kws_jax.report import text
from kws_jax.report.chart import Chart, line_key
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.workdir import Measure, Run

_WEIGHTS, _ACTIVATIONS, _BYTES = "weight_bits", "activation_bits", "weight_bytes"
_IN_FLOAT, _PACKED = "weights_in_float", "packed_bytes"
_MOST = 8
_ROW, _BAR = 30, 9
_LETTER = 7  # pixels that a letter of a layer's name takes


def float_accuracy(run: Run, condition: str = CLEAN) -> Measure | None:
    """The share of test clips that were right before the network was quantised."""
    return run.find("float_accuracy", condition)


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """What is told of a quantised network beside its accuracy."""
    means = _mean_bits(run)
    if means:
        weights, activations, size = means
        beside = _in_float(run)
        yield (
            "bits in the mean",
            f"{weights} a weight{beside}, {activations} an activation",
        )
        yield "kernels at their bits", f"{size} bytes"
    packed = run.size(_PACKED)
    if packed:
        yield "packed file", f"{text.count(packed.value)} bytes"


def bits_by_layer(run: Run) -> Markup | None:
    """Bars for each layer in the order of the network, and the means."""
    weights, activations = _layers(run, _WEIGHTS), _layers(run, _ACTIVATIONS)
    if not weights:
        return None
    names = list(dict.fromkeys([*weights, *activations]))
    left = max(120, 22 + _LETTER * max(map(len, names)))
    chart = Chart(
        "Bits of weights and activations by layer",
        x=(0, _MOST),
        y=(0, 1),
        size=(410 + left, _ROW * len(names) + 46),
        margins=(4, 30, 44, left),
    )
    for bits in range(0, _MOST + 1, 2):
        x = chart.x(bits)
        chart.add(tag("path", class_="grid", d=f"M{x:.1f} {chart.top}V{chart.bottom}"))
    chart.x_axis("bits", ticks=range(0, _MOST + 1, 2))
    for i, name in enumerate(names):
        y = chart.top + _ROW * (i + 0.5)
        chart.add(chart.text(chart.left - 10, y + 4.5, name, "end", "label"))
        _bar(chart, y - _BAR, name, "weights", weights.get(name), "c0")
        _bar(chart, y + 1, name, "activations", activations.get(name), "c1")
    legend = tag(
        "p", line_key("c0", "weights"), line_key("c1", "activations"), class_="legend"
    )
    return join([_means(run), legend, chart.svg("chart wide")])


def _layers(run: Run, metric: str) -> dict[str, float]:
    """Layer -> bits, from the rows of the last stage that has them."""
    prefix = f"{metric}/"
    rows = [m for m in run.results if m.metric.startswith(prefix)]
    last = rows[-1].stage if rows else None
    return {m.metric.removeprefix(prefix): m.value for m in rows if m.stage == last}


def _bar(
    chart: Chart, top: float, name: str, what: str, bits: float | None, class_: str
) -> None:
    if bits is None:
        return
    end = chart.x(bits)
    chart.add(
        tag(
            "g",
            tag("title", f"{name}: {bits:g} bits for {what}"),
            tag(
                "rect",
                class_=f"dot {class_}",
                x=float(chart.left),
                y=top,
                width=end - chart.left,
                height=float(_BAR - 1),
            ),
            chart.text(end + 5, top + _BAR - 0.5, f"{bits:g}", "start", "tiny"),
        )
    )


def _mean_bits(run: Run) -> tuple[str, str, str] | None:
    """Bits of a weight, of an activation, and bytes of the kernels, as text."""
    weights, activations = run.size(_WEIGHTS), run.size(_ACTIVATIONS)
    size = run.size(_BYTES)
    if not (weights and activations and size):
        return None
    return (
        f"{weights.value:.3g}",
        f"{activations.value:.3g}",
        text.count(size.value),
    )


def _means(run: Run) -> Markup | None:
    means = _mean_bits(run)
    if not means:
        return None
    weights, activations, size = means
    return tag(
        "p",
        "In the mean ",
        tag("b", f"{weights} bits"),
        f" for a weight{_in_float(run)} and ",
        tag("b", f"{activations} bits"),
        " for an activation; the kernels fill ",
        tag("b", f"{size} bytes"),
        *_packed(run),
        ". ",
        *_before(run),
    )


def _in_float(run: Run) -> str:
    """The weights that the mean leaves out, in brackets; "" where there are none."""
    kept = run.size(_IN_FLOAT)
    if not kept or not kept.value:
        return ""
    return f" (but for {text.plural(kept.value, 'weight')} in float)"


def _packed(run: Run) -> list[Markup | str]:
    packed = run.size(_PACKED)
    if not packed:
        return []
    return [", and the packed file ", tag("b", f"{text.count(packed.value)} bytes")]


def _before(run: Run) -> list[Markup | str]:
    """A sentence on what quantising has cost."""
    before, now = float_accuracy(run), run.find("accuracy")
    if not (before and now):
        return []
    return [
        "Of the clean test clips ",
        tag("b", text.percent(now.value)),
        " are right, and ",
        tag("b", text.percent(before.value)),
        " were before, in float.",
    ]
