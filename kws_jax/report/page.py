"""One self-contained HTML page that shows a run: `DIR/report.html`."""

from collections.abc import Callable
from pathlib import Path

from kws_jax.report import (
    bits,
    data_parameter_plots,
    detection,
    embedding_plot,
    false_accepts,
    noise,
    plots,
    tables,
    text,
)
from kws_jax.report.document import document
from kws_jax.report.entropy import entropy
from kws_jax.report.filters import filters
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.network_drawing import draw_network
from kws_jax.report.workdir import Run, read_run
from kws_jax.workdirs import folder_of, write_whole

FILE_NAME = "report.html"
_SOURCES = {
    "tfds": "Speech Commands",
    "folder": "a folder of recordings",
    "synthetic": "synthetic speech",
}
_METHODS = {
    "darts": "DARTS",
    "fairdarts": "FairDARTS",
    "noisydarts": "NoisyDARTS",
    "proxyless": "ProxylessNAS",
}


def write_report(workdir: str | Path) -> Path:
    """Writes `workdir/report.html` from the files of the workdir alone.

    A pure function of config.json, results.json and, where they exist, metrics.jsonl,
    architecture.jsonl, data_parameters.jsonl and .json, genotype.json, filters.json and
    evaluation.json, so it can be called at any time, also while the run goes on; a
    section whose file is missing is left out.

    Args:
      workdir: the folder of the run.

    Returns:
      The path of the page.

    Raises:
      UserError: config.json or results.json is missing, or a file cannot be read.
    """
    path = folder_of(workdir) / FILE_NAME
    write_whole(path, render(read_run(workdir)).encode())
    return path


def render(run: Run) -> str:
    """The page as HTML text: no links to elsewhere, no scripts, drawings inline."""
    made = [
        (name, title, note, body)
        for name, title, note, build in _SECTIONS
        if (body := build(run)) is not None
    ]
    title = str(run.config.get("name") or "Keyword spotting")
    links = join(tag("a", title, href=f"#{name}") for name, title, _, _ in made)
    main = tag(
        "main",
        tag("header", tag("h1", title), tag("p", summary(run), class_="lead")),
        join([tables.key_figures(run)]),
        tag("nav", links, aria_label="Sections"),
        join(_section(*parts) for parts in made),
    )
    return document(f"{title} – report", main)


def summary(run: Run) -> Markup:
    """What was made, on which data, and how good and how large it is: a sentence."""
    accuracy = run.find("accuracy")
    parameters, macs = run.size("parameters"), run.size("macs")
    start = [_network_name(run), _filter_name(run), f" for {_data_name(run)}"]
    if accuracy is None:
        return join([*start, " has no test result yet."])
    clips = f" of {text.plural(accuracy.count, 'test clip')}" if accuracy.count else ""
    rest: list[object] = [
        " gets ",
        tag("b", text.percent(accuracy.value)),
        f"{clips} right",
    ]
    if accuracy.interval:
        rest.append(f" (95 % interval {text.interval(accuracy)})")
    if parameters:
        rest += [" with ", tag("b", text.plural(parameters.value, "parameter"))]
    if macs:
        rest.append(f" and {text.millions(macs.value)} MACs for a clip")
    return join([*start, *rest, "."])


def _network_name(run: Run) -> str:
    network = run.config.get("network") or {}
    method = (run.config.get("search") or {}).get("method")
    given = network.get("genotype") or network.get("layers")
    if given:
        name = given if isinstance(given, str) else network.get("name")
        return f"The network {name}"
    if not method:
        return f"The network {network.get('name', 'of this run')}"
    if method == "random":
        return "A network drawn at random"
    return f"A network found by {_METHODS.get(method, method)}"


def _filter_name(run: Run) -> str:
    front = str((run.config.get("front_filter") or {}).get("name", "none"))
    names = {
        "dynamic": "the dynamic filter",
        "dynamic_conv": "a dynamic convolution",
        "light_conv": "a lightweight convolution",
    }
    return "" if front == "none" else f" behind {names.get(front, front)}"


def _data_name(run: Run) -> str:
    source = str((run.config.get("data") or {}).get("source", "its data"))
    source = _SOURCES.get(source, source)
    words = len(run.keywords)
    return f"{text.plural(words, 'keyword')} in {source}" if words else source


def _section(name: str, title: str, note: str, body: Markup) -> Markup:
    explanation = tag("p", note, class_="note") if note else None
    return tag("section", join([tag("h2", title), explanation, body]), id=name)


def _network(run: Run) -> Markup | None:
    if run.genotype is None:
        return None
    frontend = run.config.get("frontend") or {}
    size: dict[str, int] = {}
    if {"window_ms", "hop_ms"} <= frontend.keys():
        room = 1000 - float(frontend["window_ms"])
        size["frames"] = 1 + int(room // float(frontend["hop_ms"]))
    features = next(
        filter(None, map(frontend.get, ("num_coefficients", "num_mel", "num_filters"))),
        None,
    )
    if features:
        size["features"] = int(features)
    return draw_network(run.genotype, _classes(run), **size)


def _classes(run: Run) -> int:
    if run.evaluation:
        return len(run.evaluation["labels"])
    return len(run.keywords) + 2


_SECTIONS: tuple[tuple[str, str, str, Callable[[Run], Markup | None]], ...] = (
    (
        "noise",
        "Accuracy in noise",
        "“Seen” is noise from where training has its noise, in recordings or "
        "seconds that it never heard; “unseen” are kinds kept for the test. Far clips "
        "are heard through rooms that training never heard. Bars and the band are 95 % "
        "intervals.",
        noise.accuracy_in_noise,
    ),
    (
        "confusion",
        "What is taken for what",
        "A row is what was said, a column what the network answered, in clips. Blue is "
        "right, orange is wrong; the stronger, the larger the share of the row.",
        tables.confusion,
    ),
    (
        "recall",
        "Recall of each word",
        "The share of a word’s test clips that was recognised, with its 95 % interval.",
        plots.recall,
    ),
    (
        "others",
        "What is no keyword",
        "The share of clips without a keyword that are taken for one. Words that "
        "training never hears are those of config.data.unheard_words; of a rare one, "
        "with fewer than twenty clips of test speakers, the clips of all speakers "
        "count, some of whom training hears say other words. The interval of such "
        "words together tells what other words would give: clips of one word are "
        "alike, so it is wider than that of as many clips of different words. The "
        "other intervals tell what other clips would give.",
        false_accepts.section,
    ),
    (
        "detection",
        "Keywords in continuous audio",
        "On streams of test clips, background and silence, at every threshold: the "
        "share of the keywords that is missed, against false alarms an hour. Further "
        "down and to the left is better. What lies at the left edge was measured "
        "without a single false alarm; at the lower edge nothing was missed.",
        detection.section,
    ),
    (
        "embeddings",
        "How far apart the words lie",
        "Each dot is a test clip, as the network sees it before it decides: its "
        "embedding, scaled to length one, in the two directions in which clean clips "
        "differ most. The name of a word stands at the mean of its clips; the more the "
        "words fall into islands, the easier they are told apart. Unlike these "
        "drawings, the network uses all directions, and so does the number above each: "
        "the mean distance between the means of two words, divided by the mean "
        "distance of a clip from the mean of its own word.",
        embedding_plot.embeddings,
    ),
    (
        "network",
        "The found network",
        "From the features at the top to the scores at the bottom. A block convolves "
        "twice over time, with as many taps as there are coloured squares; SE is "
        "squeeze-and-excitation; the thin line beside a block is its shortcut, with a "
        "convolution where the size changes. A block with an expansion is an inverted "
        "bottleneck over an image of frequency and time, convolved once.",
        _network,
    ),
    (
        "architecture",
        "How the search decided",
        "The weight of every candidate in each layer, epoch by epoch.",
        plots.architecture,
    ),
    (
        "bits",
        "Bits by layer",
        "Of a layer’s weights and of its input, in the order of the network. Layers "
        "with the same input have its bits once, beside the first of them.",
        bits.bits_by_layer,
    ),
    (
        "entropy",
        "How undecided the search was",
        "The entropy of each layer’s choice, over that of an even one: 1 is undecided, "
        "0 is certain.",
        entropy,
    ),
    (
        "filters",
        "What the front end has learned",
        "Every filter passes a band of frequencies. A thin line is the magnitude of "
        "one filter’s response over its largest, the bold line their mean.",
        filters,
    ),
    ("learning", "Learning curves", "", plots.learning_curves),
    (
        "data-parameters",
        "Data parameters",
        "The temperature σ of a clip or a label divides its logits in training: where "
        "it is large, the clip teaches little. Means over the clips of an epoch, as "
        "they were heard.",
        data_parameter_plots.data_parameters,
    ),
    ("config", "Configuration", "", tables.config_details),
    ("results", "All results", "", tables.results_table),
    ("reproduce", "How to reproduce", "", tables.reproduce),
)
