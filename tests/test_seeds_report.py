"""What is shown of several seeds: accuracy, false accepts and curves in noise."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from kws_jax.evaluation.over_seeds import over_seeds
from kws_jax.report import seeds

# Of each of three seeds.
SHARES = {
    ("accuracy", "clean"): (0.96, 0.97, 0.98),
    ("accuracy", "seen 10 dB"): (0.9, 0.91, 0.92),
    ("accuracy", "seen -5 dB"): (0.6, 0.62, 0.7),
    ("accuracy", "far unseen 0 dB"): (0.5, 0.51, 0.46),
    ("frr@1fa/h", "clean"): (0.3, 0.2, 0.4),
    ("frr@1fa/h/yes", "clean"): (0.3, 0.2, 0.4),
    ("false_accept/heard", "clean"): (0.03, 0.05, 0.04),
    ("false_accept/unheard", "clean"): (0.62, 0.56, 0.71),
    ("false_accept/unheard_rare", "clean"): (0.8, 0.75, 0.78),
    ("false_accept/unheard/cat", "clean"): (0.123, 0.124, 0.125),
    ("false_accept/background", "clean"): (0.0, 0.0, 0.0),
}


@pytest.fixture
def folder(tmp_path):
    return write_workdir(tmp_path, SHARES)


def write_workdir(folder, shares):
    def row(metric, condition, value, split="test"):
        where = {"stage": "train", "split": split, "condition": condition}
        return where | {"metric": metric, "value": value}

    runs = [
        [row(*name, values[number]) for name, values in shares.items()]
        + [row("parameters", "", 1000.0, "train")]
        for number in range(3)
    ]
    (folder / "config.json").write_text('{"name": "three", "seeds": 3}')
    (folder / "results.json").write_text(json.dumps(over_seeds(runs)))
    return folder


def members(folder):
    return [folder / f"seed-{seed}" for seed in range(3)]


def page_of(folder):
    seeds.write_page(folder, members(folder))
    return (folder / "report.html").read_text()


def groups_of(page):
    """{name of a group: {name of a row: its cells}} of the table."""
    found = {}
    for body in re.findall("<tbody>(.*?)</tbody>", page):
        title, *rows = (
            re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
            for row in re.findall("<tr>(.*?)</tr>", body)
        )
        found[title[0]] = {
            row[0]: [re.sub("<.*?>", "", cell) for cell in row[1:]] for row in rows
        }
    return found


def test_false_accepts_have_mean_and_interval_over_the_seeds(folder):
    groups = groups_of(page_of(folder))
    assert list(groups) == [
        "test accuracy",
        "keywords missed in continuous audio",
        "taken for a keyword",
        "size and time",
    ]
    taken = groups["taken for a keyword"]
    kinds = {"other words": "heard", "unheard words": "unheard"}
    kinds |= {"rare unheard words": "unheard_rare", "background": "background"}
    assert list(taken) == list(kinds)
    for name, kind in kinds.items():
        values = 100 * np.array(SHARES[f"false_accept/{kind}", "clean"])
        mean, interval, *each = taken[name]
        assert mean == f"{values.mean():.1f} %"
        assert each == [f"{value:.1f} %" for value in values]
        if kind == "background":
            # Three networks that agree do not tell that others would.
            assert interval == ""
            continue
        low, high = stats.t.interval(
            0.95, 2, loc=values.mean(), scale=stats.sem(values)
        )
        assert interval == f"{max(low, 0):.1f} – {high:.1f} %"
    missed = groups["keywords missed in continuous audio"]
    assert list(missed) == ["clean, at 1 false alarm an hour"]


def test_curves_over_the_snr_go_through_the_means_and_show_each_seed(folder):
    page = page_of(folder)
    section = page[page.index("Accuracy in noise") :]
    assert re.findall("<figcaption><b>(.*?)</b>", section) == [
        "Seen noise",
        "Far unseen noise",
    ]
    # Rising SNRs, each with a dot for each seed.
    told = re.findall("<title>mean of the seeds, (.*?)</title>", section)
    assert told == ["-5 dB: 64.00 %", "10 dB: 91.00 %", "0 dB: 49.00 %"]
    assert section.count("<circle") == 3 * 3
    # One axis for all: 45 to 100 %, so that the higher of two dots is the better.
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', section)]
    values = [
        v
        for name in ("seen -5 dB", "seen 10 dB", "far unseen 0 dB")
        for v in SHARES["accuracy", name]
    ]
    line = np.polyfit(values, heights, 1)
    assert line[0] < 0
    np.testing.assert_allclose(np.polyval(line, values), heights, atol=0.02)
    assert "Far clips are heard through rooms" in section


def test_without_noise_and_unheard_words_neither_is_spoken_of(tmp_path):
    few = {name: SHARES[name] for name in [("accuracy", "clean")]}
    page = page_of(write_workdir(tmp_path, few))
    assert "Accuracy in noise" not in page
    assert "Unheard words are" not in page
    assert list(groups_of(page)) == ["test accuracy", "size and time"]


def test_the_terminal_has_the_same_groups(folder):
    console = Console(record=True, width=120, file=io.StringIO())
    seeds.print_summary(folder, members(folder), console)
    lines = [line.strip("│ ") for line in console.export_text().splitlines()]
    start = lines.index(next(x for x in lines if x.startswith("taken for a keyword")))
    cells = [re.split(r"\s*│\s*", line) for line in lines[start + 1 : start + 5]]
    assert cells[0][:3] == ["other words", "4.0 %", "1.5 – 6.5 %"]
    assert cells[0][3:] == ["3.0 %", "5.0 %", "4.0 %"]
    assert [row[0] for row in cells[1:]] == [
        "unheard words",
        "rare unheard words",
        "background",
    ]
