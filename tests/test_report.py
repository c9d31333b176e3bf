"""The report page and the terminal's table, from a made-up but realistic workdir."""

import html.parser
import io
import itertools
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from kws_jax.errors import UserError
from kws_jax.report import network_drawing
from kws_jax.report.chart import Scale
from kws_jax.report.markup import Markup, tag
from kws_jax.report.page import write_report
from kws_jax.report.terminal import print_results, print_summary, progress_bar

WORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
LABELS = [*WORDS, "_unknown_", "_silence_"]
LAYERS = [["C9SE"], ["C3SE", "C5"], ["C9"], ["SKIP"], ["C5SE"], ["SKIP"]]
GENOTYPE = {
    "layers": LAYERS,
    "strides": [2, 1, 2, 1, 2, 1],
    "channels": [36, 36, 48, 48, 72, 72],
    "stem_channels": 24,
    "shortcut": "1x1",
    "se_reduction": 4,
}
BLOCKS = [f"C{k}{se}" for k in (3, 5, 7, 9) for se in ("", "SE")]
SEARCH_EPOCHS, TRAIN_EPOCHS, STEPS = 20, 40, 89


def config():
    return {
        "name": "autokws",
        "seed": 3,
        "network": {"name": "searched", "genotype": ""},
        "search": {"method": "noisydarts", "order": 1},
        "frontend": {"name": "mfcc", "window_ms": 30.0, "hop_ms": 10.0},
        "data": {"source": "folder", "dir": "my clips", "keywords": ",".join(WORDS)},
        "stages": [
            {"name": "search", "kind": "search", "epochs": SEARCH_EPOCHS},
            {"name": "train", "kind": "train", "epochs": TRAIN_EPOCHS},
        ],
    }


def wilson(right, count):
    p, z = right / count, 1.959964
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    half /= 1 + z * z / count
    return [middle - half, middle + half]


def confusion(rng, recall, clips=90):
    matrix = np.zeros((len(LABELS), len(LABELS)), int)
    for i in range(len(LABELS)):
        share = min(0.999, recall + rng.uniform(-0.04, 0.03))
        wrong = rng.dirichlet(np.full(len(LABELS) - 1, 0.3)) * (1 - share)
        matrix[i] = rng.multinomial(clips + i, np.insert(wrong, i, share))
    return matrix


def results(matrices):
    def row(metric, value, condition=None, count=None, ci95=None, **more):
        fields = {"stage": "train", "split": "test", "condition": condition}
        fields |= {"metric": metric, "value": value, "ci95": ci95, "count": count}
        return fields | more

    rows = []
    for condition, matrix in matrices.items():
        right, count = int(np.trace(matrix)), int(matrix.sum())
        interval = wilson(right, count)
        rows.append(row("accuracy", right / count, condition, count, interval))
    for i, label in enumerate(LABELS):
        right, count = int(matrices["clean"][i, i]), int(matrices["clean"][i].sum())
        interval = wilson(right, count)
        rows.append(row(f"recall/{label}", right / count, "clean", count, interval))
    rows += [
        row("parameters", 122456),
        row("parameters_with_statistics", 123789),
        row("macs", 3201234),
        row("clips_per_second", 1612.4),
        row("seconds", 725.2, split=None),
        row("seconds", 1830.0, stage="search", split=None),
    ]
    return rows


def curve(rng, stage, epochs, rate):
    for step in range(0, epochs * STEPS + 1, 20):
        done = step / (epochs * STEPS)
        loss = 2.4 * math.exp(-5 * done) + 0.12 + rng.normal(0, 0.02)
        yield {
            "stage": stage,
            "step": step,
            "epoch": step / STEPS,
            "split": "train",
            "loss": loss,
            "accuracy": 1 - 0.3 * loss,
            "learning_rate": rate * (1 + math.cos(math.pi * done)) / 2,
            "clips_per_second": 1600 + rng.normal(0, 30),
        }
    for epoch in range(1, epochs + 1):
        loss = 2.0 * math.exp(-5 * epoch / epochs) + 0.17 + rng.normal(0, 0.02)
        fields = {"stage": stage, "step": epoch * STEPS, "epoch": float(epoch)}
        yield fields | {"split": "validation", "loss": loss, "accuracy": 1 - 0.2 * loss}


def architecture_lines(rng):
    ops = [BLOCKS + ["SKIP"] * (i % 2) for i in range(6)]
    goals = [rng.normal(0, 1, len(names)) for names in ops]
    for goal, names, chosen in zip(goals, ops, LAYERS):
        for op in chosen:
            goal[names.index(op)] = rng.uniform(2, 3)
    for epoch in range(SEARCH_EPOCHS + 1):
        logits = [goal * epoch / SEARCH_EPOCHS for goal in goals]
        weights = [(np.exp(z) / np.exp(z).sum()).tolist() for z in logits]
        fields = {"stage": "search", "step": epoch * STEPS, "epoch": float(epoch)}
        yield fields | {"ops": ops, "weights": weights}


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_workdir(workdir, seed=0, far=False, noise=True):
    """Writes all files of a finished search and training."""
    rng = np.random.default_rng(seed)
    matrices = {"clean": confusion(rng, 0.965)}
    kinds = (("seen", 0.0), ("unseen", 0.06)) if noise else ()
    for kind, loss in kinds:
        for snr, recall in ((20, 0.955), (10, 0.93), (5, 0.89), (0, 0.8), (-5, 0.62)):
            matrices[f"{kind} {snr} dB"] = confusion(rng, recall - loss)
    if far:
        matrices["far clean"] = confusion(rng, 0.91)
        for kind, loss in kinds:
            for snr, recall in (
                (20, 0.89),
                (10, 0.84),
                (5, 0.76),
                (0, 0.63),
                (-5, 0.4),
            ):
                matrices[f"far {kind} {snr} dB"] = confusion(rng, recall - loss)
    evaluation = {
        "labels": LABELS,
        "confusion": {name: matrix.tolist() for name, matrix in matrices.items()},
    }
    for name, content in (
        ("config", config()),
        ("results", results(matrices)),
        ("genotype", GENOTYPE),
        ("evaluation", evaluation),
    ):
        (workdir / f"{name}.json").write_text(json.dumps(content))
    metrics = [*curve(rng, "search", SEARCH_EPOCHS, 0.05)]
    metrics += curve(rng, "train", TRAIN_EPOCHS, 0.1)
    write_lines(workdir / "metrics.jsonl", metrics)
    write_lines(workdir / "architecture.jsonl", architecture_lines(rng))
    return workdir


class Page(html.parser.HTMLParser):
    """Collects the elements of a page and fails on an unbalanced one."""

    VOID = ("meta", "br", "wbr")

    def __init__(self, source):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def ids(self):
        return [attrs["id"] for _, attrs in self.elements if "id" in attrs]

    def having(self, attribute):
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, source of its page)."""
    workdir = make_workdir(tmp_path_factory.mktemp("runs") / ".")
    return workdir, write_report(workdir).read_text()


def edit(workdir, name, change):
    path = workdir / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def test_page_is_self_contained(finished):
    workdir, source = finished
    page = Page(source)
    assert (workdir / "report.html").exists()
    assert len(source.encode()) < 2_000_000
    without_namespaces = source.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|url\(|@import", without_namespaces)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
    assert all(link.startswith("#") for link in page.having("href"))
    assert page.having("src") == []


def test_page_shows_every_number_of_the_results(finished):
    workdir, source = finished
    text = Page(source).text
    for row in json.loads((workdir / "results.json").read_text()):
        assert row["metric"] in text
        if row["metric"].startswith(("accuracy", "recall")):
            low, high = (f"{100 * v:.1f}" for v in row["ci95"])
            assert f"{100 * row['value']:.2f} % {low} – {high} %" in text
            assert f"{row['count']:,}" in text
    assert all(number in text for number in ("122,456", "123,789", "3.20 M", "1,612"))
    assert "42 min 35 s" in text
    assert "search 30 min 30 s, train 12 min 5 s" in text


def test_summary_is_one_sentence_with_accuracy_size_and_cost(finished):
    workdir, source = finished
    accuracy = json.loads((workdir / "results.json").read_text())[0]
    low, high = (f"{100 * v:.1f}" for v in accuracy["ci95"])
    # The collapsed text of elements has a space on both sides of each bold part.
    assert (
        "A network found by NoisyDARTS for 10 keywords in a folder of recordings gets "
        f"{100 * accuracy['value']:.1f} % of {accuracy['count']:,} test clips right "
        f"(95 % interval {low} – {high} %) with 122,456 parameters and 3.20 M "
        "MACs for a clip."
    ) in Page(source).text


def test_ids_are_unique_and_all_links_lead_to_one(finished):
    page = Page(finished[1])
    ids = page.ids()
    assert len(ids) == len(set(ids)) == 9
    assert {link[1:] for link in page.having("href")} == set(ids)


@pytest.mark.parametrize(
    ("file", "sections"),
    [
        ("metrics.jsonl", {"learning"}),
        ("architecture.jsonl", {"architecture"}),
        ("genotype.json", {"network"}),
        ("evaluation.json", {"confusion"}),
    ],
)
def test_section_is_left_out_with_its_file(tmp_path, finished, file, sections):
    workdir = make_workdir(tmp_path)
    (workdir / file).unlink()
    ids = set(Page(write_report(workdir).read_text()).ids())
    assert ids == set(Page(finished[1]).ids()) - sections


def test_run_in_progress_has_a_page_without_results(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config()))
    (tmp_path / "results.json").write_text("[]")
    lines = ['{"stage": "search", "split": "train", "step": 20, "loss": 2.5}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"stage": "sea']))
    page = Page(write_report(tmp_path).read_text())
    assert page.ids() == ["learning", "config", "reproduce"]
    assert "has no test result yet" in page.text


def test_measures_that_are_not_finite_leave_no_trace_in_the_drawings(tmp_path):
    workdir = make_workdir(tmp_path)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "split": "train", "step": 9999, "loss": NaN}\n')
    edit(workdir, "results.json", lambda rows: rows[3].update(value=None))
    page = Page(write_report(workdir).read_text())
    drawn = [attrs for tag, attrs in page.elements if tag in ("path", "circle", "text")]
    assert drawn
    assert not [a for a in drawn if "nan" in " ".join(map(str, a.values()))]


def test_user_text_is_escaped(tmp_path):
    workdir = make_workdir(tmp_path)
    evil = "<script>alert('x')</script>&\""
    edit(workdir, "config.json", lambda c: c.update(name=evil, data={"source": evil}))
    edit(workdir, "evaluation.json", lambda e: {**e, "labels": [evil] * len(LABELS)})
    edit(workdir, "genotype.json", lambda g: {**g, "layers": [[evil]] * 6})
    edit(workdir, "results.json", lambda rows: rows[11].update(metric="recall/" + evil))
    source = write_report(workdir).read_text()
    page = Page(source)
    assert "<script" not in source
    assert evil in page.texts  # the heading, unescaped by the parser
    assert "script" not in {tag for tag, _ in page.elements}


def test_confusion_matrices_hold_the_counts_of_all_conditions(finished):
    workdir, source = finished
    matrices = json.loads((workdir / "evaluation.json").read_text())["confusion"]
    titles = [t for t in Page(source).having("title") if " heard as " in t]
    told = [int(re.search(r": (\d+) of", title)[1]) for title in titles]
    assert told == np.ravel([matrices[condition] for condition in matrices]).tolist()


def test_drawing_has_one_block_for_each_operation(finished):
    drawn = Page(finished[1]).having("data-op")
    assert drawn == [op for layer in LAYERS for op in layer]


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 9])
def test_parallel_blocks_stand_side_by_side_within_the_drawing(lanes):
    genotype = GENOTYPE | {"layers": [[*BLOCKS, "SKIP"][:lanes]] * 6}
    page = Page(network_drawing.draw_network(genotype, 12))
    assert len(page.having("data-op")) == 6 * lanes
    boxes = [
        (float(a["y"]), float(a["x"]), float(a["x"]) + float(a["width"]))
        for tag, a in page.elements
        if tag == "rect" and a["class"].startswith("box")
    ]
    assert all(left >= 0 and right <= network_drawing.WIDTH for _, left, right in boxes)
    for (y, _, right), (next_y, left, _) in itertools.pairwise(boxes):
        assert y < next_y or right < left


def test_drawing_tells_the_time_resolution_and_the_shortcut():
    text = Page(network_drawing.draw_network(GENOTYPE, 12)).text
    for size in ("98 × 40", "98 × 24", "49 × 36", "25 × 48", "13 × 72"):
        assert size in text
    # Of the layers that change the size, three have one block each.
    assert text.count("1×1") == 3
    own = Page(network_drawing.draw_network(GENOTYPE | {"shortcut": "jx1"}, 12)).text
    assert (own.count("9×1"), own.count("5×1"), own.count("1×1")) == (2, 1, 0)


def test_missing_results_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json is missing"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "is damaged"),
        ("results.json", '[{"value": 1}]', "expected a list of objects"),
        ("genotype.json", '{"layers": [["C3"]], "strides": []}', "of one length"),
    ],
)
def test_broken_file_is_named(tmp_path, file, content, message):
    workdir = make_workdir(tmp_path)
    (workdir / file).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        write_report(workdir)
    assert file in str(error.value)


def test_attributes_and_children_are_escaped_unless_markup():
    made = tag("b", "<i>", Markup("<i></i>"), title='"&', class_="x", stroke_width=1.5)
    assert made == (
        '<b title="&quot;&amp;" class="x" stroke-width="1.5">&lt;i&gt;<i></i></b>'
    )


def test_scale_maps_its_ends_and_ticks_are_round():
    scale = Scale(0.5, 1.0, 300, 20)
    assert (scale(0.5), scale(1.0), scale(0.75)) == (300, 20, 160)
    assert scale.ticks(5) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    log = Scale(0.1, 10, 0, 200, log=True)
    assert (log(0.1), log(1), log(10)) == pytest.approx((0, 100, 200))
    assert {0.1, 1.0, 10.0} <= set(log.ticks(5))


def recorder(**options):
    return Console(file=io.StringIO(), width=90, **options)


def test_terminal_summary_has_accuracy_conditions_size_time_and_report(finished):
    workdir, _ = finished
    console = recorder()
    print_summary(workdir, console)
    printed = console.file.getvalue()
    for row in json.loads((workdir / "results.json").read_text()):
        if row["metric"] == "accuracy":
            low, high = row["ci95"]
            line = next(s for s in printed.splitlines() if f" {row['condition']} " in s)
            assert f"{100 * row['value']:.1f} %" in line
            assert f"{100 * low:.1f} – {100 * high:.1f} %" in line
    assert "122,456" in printed
    assert "3.20 M" in printed
    assert "train 12 min 5 s" in printed
    assert str(workdir / "report.html") in printed.replace("\n", "")


def test_terminal_prints_names_without_reading_markup(tmp_path):
    workdir = make_workdir(tmp_path)
    edit(workdir, "config.json", lambda c: c.update(name="[red]x[/]"))
    console = recorder()
    print_summary(workdir, console)
    assert "[red]x[/]" in console.file.getvalue()


def test_results_alone_print_the_same_table(finished):
    workdir, _ = finished
    whole, alone = recorder(), recorder()
    print_summary(workdir, whole)
    print_results(json.loads((workdir / "results.json").read_text()), alone)
    tables = [
        [line for line in console.file.getvalue().splitlines() if "│" in line]
        for console in (whole, alone)
    ]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 11  # clean, and two kinds of noise at five SNRs


@pytest.fixture(scope="module")
def heard_far(tmp_path_factory):
    """As `finished`, of a run whose test has rooms."""
    workdir = make_workdir(tmp_path_factory.mktemp("far"), far=True)
    return workdir, write_report(workdir).read_text()


def accuracies(workdir):
    rows = json.loads((workdir / "results.json").read_text())
    return {r["condition"]: r for r in rows if r["metric"] == "accuracy"}


def noise_table(source):
    """The cells of the table of accuracies in noise, row by row."""
    table = re.search(r'<table class="noise">.*?</table>', source, re.S)[0]
    rows = re.findall(r"<tr>.*?</tr>", table, re.S)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in cells]


def test_table_has_every_snr_kind_and_place_with_its_interval(heard_far):
    workdir, source = heard_far
    measured = accuracies(workdir)
    head, clean, *rows, mean = noise_table(source)
    assert head == ["noise", "near seen", "near unseen", "far seen", "far unseen"]
    assert [row[0] for row in rows] == ["20 dB", "10 dB", "5 dB", "0 dB", "−5 dB"]
    for row in rows:
        for name, cell in zip(head[1:], row[1:], strict=True):
            snr = row[0].replace("−", "-")
            found = measured[f"{name.removeprefix('near ')} {snr}"]
            low, high = (f"{100 * v:.1f}" for v in found["ci95"])
            assert cell == f"{100 * found['value']:.1f} % ({low} – {high} %)"
    for name, cell in zip(head[1:], clean[1:], strict=True):
        found = measured["far clean" if name.startswith("far") else "clean"]
        assert cell.startswith(f"{100 * found['value']:.1f} %")
    values = [m["value"] for c, m in measured.items() if c.startswith("far unseen")]
    assert mean[4] == f"{100 * np.mean(values):.1f} %"


def test_near_and_far_are_two_panels_and_near_alone_is_one(finished, heard_far):
    def panels(source):
        labels = Page(source).having("aria-label")
        return [label for label in labels if "signal-to-noise" in label]

    assert len(panels(finished[1])) == 1
    assert [p.rpartition(", ")[2] for p in panels(heard_far[1])] == ["near", "far"]
    assert noise_table(finished[1])[0] == ["noise", "seen", "unseen"]
    # Both are drawn with one axis, or they could not be compared.
    section = heard_far[1].partition('id="noise"')[2].partition("</section>")[0]
    axes = [re.findall(r">(\d+ %)<", part) for part in section.split("<figure>")[1:3]]
    assert axes[0] == axes[1] != []


def test_far_clips_without_any_noise_are_a_table(tmp_path):
    workdir = make_workdir(tmp_path, far=True, noise=False)
    source = write_report(workdir).read_text()
    head, row = noise_table(source)
    assert (head, row[0]) == (["noise", "near", "far"], "none")
    for condition, cell in zip(("clean", "far clean"), row[1:], strict=True):
        found = accuracies(workdir)[condition]
        low, high = (f"{100 * v:.1f}" for v in found["ci95"])
        assert cell == f"{100 * found['value']:.1f} % ({low} – {high} %)"
    console = recorder()
    print_summary(workdir, console)
    names = re.findall(r"^│ (\S.*?) +│", console.file.getvalue(), re.M)
    assert names == ["clean", "far clean"]
    assert "mean over the SNRs" not in console.file.getvalue()


def test_near_clips_without_any_noise_have_no_section_of_it(tmp_path):
    source = write_report(make_workdir(tmp_path, noise=False)).read_text()
    assert 'id="noise"' not in source


def test_terminal_tells_far_conditions_and_means(heard_far):
    workdir, _ = heard_far
    console = recorder()
    print_summary(workdir, console)
    lines = console.file.getvalue().splitlines()
    for condition, row in accuracies(workdir).items():
        line = next(s for s in lines if f"│ {condition} " in s)
        assert f"{100 * row['value']:.1f} %" in line
    names = [s.split("│")[1].strip() for s in lines if "│" in s]
    assert names.index("far clean") == 11
    found = accuracies(workdir).items()
    for kind in ("seen", "unseen", "far seen", "far unseen"):
        mean = np.mean([m["value"] for c, m in found if c.startswith(f"{kind} ")])
        line = next(s for s in lines if s.startswith("mean over the SNRs"))
        assert f"{kind} {100 * mean:.1f} %" in line


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_progress_without_terminal_is_a_line_every_20_seconds():
    console, clock = recorder(), Clock()
    with progress_bar("search", 200, 100, console=console, clock=clock) as bar:
        for _ in range(10):
            clock.now += 5.0
            bar.advance(10, loss=0.5, clips_per_second=1612.0, learning_rate=0.1)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "search  140/200  70 %  loss 0.500 · 1,612 clips/s · 30 s left",
        "search  180/200  90 %  loss 0.500 · 1,612 clips/s · 10 s left",
        "search  200/200  100 %  loss 0.500 · 1,612 clips/s · 0 s left",
    ]


def test_progress_on_a_terminal_is_a_bar_with_speed_loss_and_time_left():
    console, clock = recorder(force_terminal=True), Clock()
    with progress_bar("train", 100, console=console, clock=clock) as bar:
        for _ in range(5):
            clock.now += 2.0
            bar.advance(10, loss=0.25, clips_per_second=1500.0)
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert "train" in printed
    assert "50%" in printed
    assert "loss 0.250 · 1,500 clips/s · 10 s left" in printed


def test_an_interrupted_run_leaves_its_last_step_in_the_log():
    console = recorder()

    def interrupted():
        with progress_bar("train", 10, console=console) as bar:
            bar.advance(1, loss=1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert console.file.getvalue() == "train  1/10  10 %  loss 1.000\n"


def test_command_to_reproduce_is_the_one_given_quoted_for_a_shell(tmp_path):
    workdir = make_workdir(tmp_path)
    assert "kws_jax.main" not in Page(write_report(workdir).read_text()).text
    words = ["--config=configs/autokws.py:fairdarts", "--config.data.dir=my clips"]
    (workdir / "command.json").write_text(json.dumps(words))
    text = Page(write_report(workdir).read_text()).text
    assert "--config=configs/autokws.py:fairdarts" in text
    assert "'--config.data.dir=my clips'" in text


def test_search_in_progress_shows_no_choice(tmp_path):
    workdir = make_workdir(tmp_path)
    assert "bold: chosen" in Page(write_report(workdir).read_text()).text
    (workdir / "genotype.json").unlink()
    assert "bold: chosen" not in Page(write_report(workdir).read_text()).text
