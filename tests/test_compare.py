import io
import json

import numpy as np
import pytest

from kws_jax import compare
from kws_jax.comparison import page, size_plot, tables
from kws_jax.comparison.rows import OtherClipsError, read_rows
from kws_jax.errors import UserError
from kws_jax.evaluation.metrics import clustered_interval

LABEL = np.arange(100) % 4


def make_run(folder, *, seed, network="tc_resnet8", right=90, noisy=0.5, label=LABEL):
    folder.mkdir()
    config = {
        "name": "tc_resnet",
        "seed": seed,
        "data": {"seed": 10 * seed},
        "network": {"name": network, "width": 1.5},
        "stages": [{"name": "train", "kind": "train"}],
    }

    def row(metric, value, condition="clean", split="test"):
        names = ("stage", "split", "condition", "metric", "value", "ci95", "count")
        return dict(zip(names, ("train", split, condition, metric, value, None, 100)))

    rows = [
        row("accuracy", right / 100),
        row("accuracy", 0.123, split="validation"),
        row("accuracy", noisy, "unseen 0 dB"),
        row("accuracy", noisy + 0.2, "unseen 20 dB"),
        row("accuracy", 0.41, "far clean"),
        row("accuracy", 0.3, "far seen 0 dB"),
        row("accuracy", 0.35, "far seen 20 dB"),
        row("frr@1fa/h", 0.25),
        row("frr@1fa/h", 0.99, split="validation"),
        row("false_accept/unheard", 0.5),
        row("parameters", 1000, split="train"),
        row("macs", 2_000_000, split="train"),
        row("seconds", 90, split="train"),
    ]

    def answers(share):
        return np.where(np.arange(100) < 100 * share, label, label + 1)

    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_text(json.dumps(rows))
    conditions = {
        "clean": answers(right / 100),
        "unseen 0 dB": answers(noisy),
        "unseen 20 dB": answers(noisy + 0.2),
    }
    np.savez(folder / "predictions.npz", label=label, **conditions)
    return folder


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_seeds_of_one_experiment_are_one_row_with_mean_and_deviation(tmp_path):
    runs = [make_run(tmp_path / f"{s}", seed=s, right=r) for s, r in ((0, 90), (1, 94))]
    lines = tables.overview(read_rows(runs), None).splitlines()
    assert len(lines) == 3
    values = dict(zip(cells(lines[0]), cells(lines[2]), strict=True))
    assert values["network"] == "tc_resnet8 ×1.5"
    assert values["seeds"] == "2"
    assert values["clean, % (sd)"] == f"92.00 ({np.std([90, 94], ddof=1):.2f})"
    assert values["unseen noise, %"] == "60.00"
    assert values["far clean, %"] == "41.00"
    assert values["far seen noise, %"] == "32.50"
    assert values["missed at 1 FA/h, % (sd)"] == "25.00 (0.00)"
    # Rows of an earlier version do not say which words they are about.
    assert values["unheard words taken, % (sd) [95 % over words]"] == "50.00 (0.00)"
    assert values["MACs"] == "2.00 M"
    assert values["train, min"] == "1.5"
    # What no row has.
    absent = ("seen noise, %", "far unseen noise, %", "search, min")
    assert not set(absent) & set(values)


def drop(run, *metrics):
    """Takes rows out of the results of a workdir."""
    rows = json.loads((run / "results.json").read_text())
    rows = [row for row in rows if row["metric"] not in metrics]
    (run / "results.json").write_text(json.dumps(rows))


def test_of_what_some_seeds_have_it_is_told_how_many(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", seed=seed) for seed in range(3)]
    drop(runs[0], "frr@1fa/h", "seconds")
    drop(runs[1], "frr@1fa/h", "false_accept/unheard", "parameters")
    told = column(read_rows(runs))
    assert told["seeds"] == "3"
    assert told["missed at 1 FA/h, % (sd)"] == "25.00 (1 of 3)"
    taken = told["unheard words taken, % (sd) [95 % over words]"]
    assert taken == "50.00 (0.00) (2 of 3)"
    assert told["parameters"] == "1,000 (2 of 3)"
    # The mean of those that took some time, not of a run that does not tell.
    assert told["train, min"] == "1.5 (2 of 3)"
    assert told["clean, % (sd)"] == "90.00 (0.00)"


def listen(run, *, hours=1.0, noise="there", clips="these", old=False):
    """Says in a workdir on which streams its detection was measured."""
    words = {"detection.hours": hours, "detection.seed": 4321}
    same = {"rule": {"tolerance_ms": 250.0}, "thresholds": {}}
    streams = [
        {"split": split, "condition": "clean", "keywords": round(number * hours)}
        for split, number in (("validation", 500), ("test", 600))
    ]
    measured_on = {"clips": clips, "dir": str(run), "tolerance_ms": 250.0}
    measured_on |= {"words": words, "noise": {"data.noise_unseen": noise}}
    told = same | {"streams": streams} | ({} if old else {"measured_on": measured_on})
    (run / "detection.json").write_text(json.dumps(told))


def missed(rows, baseline=None):
    lines = tables.overview(rows, baseline).splitlines()
    number = cells(lines[0]).index("missed at 1 FA/h, % (sd)")
    return [cells(line)[number] for line in lines[2:]]


def test_what_was_missed_on_other_streams_is_marked(tmp_path):
    names = ("tc_resnet8", "tc_resnet14", "res15", "tenet6", "tenet12", "conv_mixer")
    runs = [make_run(tmp_path / n, seed=0, network=n) for n in names]
    for run, how in zip(
        runs,
        (
            {},
            {"hours": 2.0},
            {"clips": "others"},
            {"noise": "here"},
            {"old": True},
            {"old": True, "hours": 2.0},
        ),
    ):
        listen(run, **how)
    rows = read_rows(runs)
    marked = "25.00, other streams"
    # What is heard in noise is not clean; a former version knew how many were said.
    assert missed(rows) == ["25.00", marked, marked, "25.00", "25.00", marked]
    told = tables.other_streams(rows, None)
    assert told.startswith("Missed: “other streams” are not those of tc_resnet8 ×1.5")
    assert missed(rows, rows[1]) == [marked, "25.00"] + 3 * [marked] + ["25.00"]
    assert "those of tc_resnet14" in tables.other_streams(rows, rows[1])
    alike = [rows[0], rows[3]]
    assert tables.other_streams(alike, None) == ""


def test_seeds_on_streams_of_their_own_have_no_mean(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", seed=seed) for seed in (0, 1, 2)]
    for run, hours in zip(runs, (1.0, 1.0, 2.0)):
        listen(run, hours=hours)
    assert missed(read_rows(runs[:2])) == ["25.00 (0.00)"]
    assert missed(read_rows(runs)) == ["other streams"]
    assert "not the same for all seeds" in tables.other_streams(read_rows(runs), None)
    # Where no workdir tells of streams, there is nothing to be told apart.
    for run in runs:
        (run / "detection.json").unlink()
    assert missed(read_rows(runs)) == ["25.00 (0.00)"]


def test_a_test_of_a_network_whose_size_nobody_kept_has_none(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=0, network="tc_resnet14"),
    ]
    drop(runs[1], "parameters", "macs", "seconds")
    rows = read_rows(runs)
    lines = tables.overview(rows, None).splitlines()
    told = dict(zip(cells(lines[0]), cells(lines[3]), strict=True))
    assert told["MACs"] == told["parameters"] == told["train, min"] == "–"
    page.write(rows, tmp_path / "plot.html")
    drawn = (tmp_path / "plot.html").read_text()
    assert "tc_resnet8 ×1.5: 90.00 %, 1,000 parameters" in drawn
    assert "no size is known: tc_resnet14 ×1.5." in drawn
    page.write(rows[1:], tmp_path / "plot.html")
    assert "Accuracy against size" not in (tmp_path / "plot.html").read_text()


def test_a_baseline_without_an_experiment_is_named_as_it_was_given(
    tmp_path, monkeypatch
):
    run = make_run(tmp_path / "a", seed=0)
    flags = {"value": str(tmp_path)}
    monkeypatch.setattr(compare, "_BASELINE", type("Flag", (), flags))
    with pytest.raises(UserError, match=f"^--baseline={tmp_path} holds no experiment"):
        compare.main(["compare", str(run)])


def add_unheard(run, taken, rare):
    """Rows of unheard words, {word: (taken, clips)}, and of them all and the rare."""
    rows = json.loads((run / "results.json").read_text())
    rows = [row for row in rows if row["metric"] != "false_accept/unheard"]
    same = {"stage": "train", "split": "test", "condition": "clean", "ci95": None}
    groups = {"unheard": list(taken), "unheard_rare": rare}
    groups |= {f"unheard/{word}": [word] for word in taken}
    for name, words in groups.items():
        hits, count = (sum(taken[word][i] for word in words) for i in (0, 1))
        row = {"metric": f"false_accept/{name}", "value": hits / count, "count": count}
        rows.append(same | row | ({} if "/" in name else {"words": words}))
    (run / "results.json").write_text(json.dumps(rows))


def test_unheard_words_have_an_interval_over_words_of_the_mean_over_seeds(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]
    add_unheard(runs[0], {"cat": (30, 40), "dog": (4, 5), "bird": (1, 5)}, ["dog"])
    add_unheard(runs[1], {"cat": (20, 40), "dog": (5, 5), "bird": (0, 5)}, ["dog"])
    lines = tables.overview(read_rows(runs), None).splitlines()
    values = dict(zip(cells(lines[0]), cells(lines[2]), strict=True))
    low, high = clustered_interval([25, 4.5, 0.5], [40, 5, 5])
    deviation = np.std([70, 50], ddof=1)
    assert values["unheard words taken, % (sd) [95 % over words]"] == (
        f"60.00 ({deviation:.2f}) [{100 * low:.1f} … {100 * high:.1f}]"
    )
    assert values["rare ones, % (sd) [95 % over words]"].startswith("90.00 (14.14) [")
    # Seeds that were tested on other words have no words in common to draw from.
    add_unheard(runs[1], {"cat": (20, 40), "dog": (5, 5)}, ["dog"])
    (row,) = read_rows(runs)
    assert row.interval_over_words("false_accept/unheard") is None


def test_a_seed_of_an_earlier_version_is_in_the_row_of_its_experiment(tmp_path):
    runs = [make_run(tmp_path / f"{s}", seed=s) for s in (0, 1, 2)]
    for run, norms in zip(runs[1:], ("global", "device")):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"batch_norm_of": norms}))
    assert [len(row.runs) for row in read_rows(runs)] == [2, 1]


def test_how_seeds_were_trained_makes_no_other_row(tmp_path):
    runs = [make_run(tmp_path / f"{s}", seed=s) for s in (0, 1)]
    for run, ways in zip(runs, ("yes", "auto")):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"seeds_at_once": ways}))
    assert [len(row.runs) for row in read_rows(runs)] == [2]


def test_rows_of_one_name_are_told_apart_by_their_folder(tmp_path):
    short = make_run(tmp_path / "short", seed=0)
    long = make_run(tmp_path / "long", seed=0)
    config = json.loads((long / "config.json").read_text())
    config["stages"][0]["epochs"] = 50
    (long / "config.json").write_text(json.dumps(config))
    rows = read_rows([short, long])
    assert [row.folders for row in rows] == [[short], [long]]
    assert [row.name for row in rows] == [
        "tc_resnet8 ×1.5 (short)",
        "tc_resnet8 ×1.5 (long)",
    ]


def test_difference_to_the_baseline_is_that_of_the_means_and_its_interval_holds_it(
    tmp_path,
):
    base = make_run(tmp_path / "a", seed=0, right=80)
    better = make_run(tmp_path / "b", seed=0, right=95, network="tc_resnet14")
    rows = read_rows([base, better])
    difference = cells(tables.overview(rows, rows[0]).splitlines()[3])[-1]
    assert difference.startswith("+15.00 (")
    low, high = map(float, difference.partition("(")[2].rstrip(")").split(" … "))
    # Binomial: 15 of 100 clips differ, all in one direction.
    assert low == pytest.approx(15 - 1.96 * 100 * np.sqrt(0.15 * 0.85 / 100), abs=1.1)
    assert high == pytest.approx(15 + 1.96 * 100 * np.sqrt(0.15 * 0.85 / 100), abs=1.1)


def test_noise_has_a_table_for_each_kind_with_differences_at_each_snr(tmp_path):
    base = make_run(tmp_path / "a", seed=0, noisy=0.5)
    better = make_run(tmp_path / "b", seed=0, noisy=0.6, network="tc_resnet14")
    rows = read_rows([base, better])
    near, far = tables.in_noise(rows, rows[0]).split("Far seen noise")
    assert near.startswith("Unseen noise: accuracy, %; in points against tc_resnet8")
    lines = [line for line in near.splitlines() if line.startswith("|")]
    assert cells(lines[0]) == ["network", "clean", "20 dB", "0 dB", "mean"]
    assert cells(lines[2]) == ["tc_resnet8 ×1.5", "90.00", "70.00", "50.00", "60.00"]
    told = cells(lines[3])
    assert told[1] == "90.00, +0.00 (+0.00 … +0.00)"
    assert told[2].startswith("80.00, +10.00 (")
    assert told[3].startswith("60.00, +10.00 (")
    assert told[4].startswith("70.00, +10.00 (")
    # The answers far from the microphone were not kept: no differences.
    last = [line for line in far.splitlines() if line.startswith("|")][-1]
    assert cells(last) == ["tc_resnet14 ×1.5", "41.00", "35.00", "30.00", "32.50"]
    assert far.endswith(tables.NOTE)


def test_rows_of_other_clips_are_not_subtracted(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=0, network="tc_resnet14", label=LABEL[::-1]),
    ]
    rows = read_rows(runs)
    assert cells(tables.overview(rows, rows[0]).splitlines()[3])[-1] == ("other test")


def test_tests_with_other_unheard_words_have_other_unknown_clips(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=0, network="tc_resnet14"),
        make_run(tmp_path / "c", seed=0, network="res15"),
    ]
    change(runs[1], unheard_words="")  # as versions before had it
    change(runs[2], unheard_words="happy")
    rows = read_rows(runs)
    told = [cells(line)[-1] for line in tables.overview(rows, rows[0]).splitlines()]
    assert told[3] == "+0.00 (+0.00 … +0.00)"
    assert told[4] == "other test"


def stages(run, *kinds, **last):
    """Gives a run stages of these kinds, each of which took a minute and a half."""
    config = json.loads((run / "config.json").read_text())
    names = [*(f"stage{n}" for n in range(len(kinds) - 1)), "train"]
    config["stages"] = [
        {"name": name, "kind": kind} for name, kind in zip(names, kinds)
    ]
    config["stages"][-1] |= last
    (run / "config.json").write_text(json.dumps(config))
    rows = json.loads((run / "results.json").read_text())
    (seconds,) = (row for row in rows if row["metric"] == "seconds")
    rows += [seconds | {"stage": name} for name in names[:-1]]
    (run / "results.json").write_text(json.dumps(rows))
    return rows


def test_time_of_searches_is_told_apart_from_that_of_training(tmp_path):
    run = make_run(tmp_path / "a", seed=0)
    stages(run, "proxyless_search", "proxyless_search", "train", "train", "train")
    told = column(read_rows([run]))
    assert (told["search, min"], told["train, min"]) == ("3.0", "4.5")


def column(rows):
    """Head -> what stands below it in the overview's first row."""
    lines = tables.overview(rows, None).splitlines()
    return dict(zip(cells(lines[0]), cells(lines[2]), strict=True))


def test_few_bits_are_told_and_are_on_a_curve_of_their_own(tmp_path):
    fixed = {"learned": False, "weights": 4, "activations": 3}
    run = make_run(tmp_path / "a", seed=0)
    assert "bytes, packed" not in column(read_rows([run]))
    rows = stages(run, "train", "quantize", bits=fixed)
    like = rows[0]
    for metric, value, split in (
        ("weight_bits", 4, "train"),
        ("activation_bits", 2.75, "train"),
        ("packed_bytes", 12345, "train"),
        ("float_accuracy", 0.95, "test"),
    ):
        rows.append(like | {"metric": metric, "value": value, "split": split})
    (run / "results.json").write_text(json.dumps(rows))
    learned = make_run(tmp_path / "b", seed=0)
    stages(learned, "train", "quantize", bits=fixed | {"learned": True})
    told, others = read_rows([run, learned])
    assert [told.name, others.name] == [
        "tc_resnet8 ×1.5 w4a3",
        "tc_resnet8 ×1.5 learned bits",
    ]
    assert [told.group, others.group] == ["tc_resnet8 w4a3", "tc_resnet8 learned bits"]
    shown = column([told, others])
    assert shown["bits of a weight, an activation"] == "4, 2.75"
    assert shown["bytes, packed"] == "12,345"
    assert shown["before, in float, %"] == "95.00"


@pytest.mark.parametrize("coefficients", [10, 40])
def test_searches_with_other_front_ends_have_other_names(tmp_path, coefficients):
    run = make_run(tmp_path / "a", seed=0, network="mbconv")
    config = json.loads((run / "config.json").read_text())
    config["search"] = {"method": "proxyless"}
    config["frontend"] = {"name": "mfcc", "num_coefficients": coefficients}
    (run / "config.json").write_text(json.dumps(config))
    (row,) = read_rows([run])
    assert row.name == row.group == f"proxyless mfcc{coefficients}"


def change(run, **data):
    """Changes fields of the data in the config of a workdir."""
    config = json.loads((run / "config.json").read_text())
    config["data"] |= data
    (run / "config.json").write_text(json.dumps(config))


def test_other_noise_is_not_subtracted_and_clean_clips_are(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=0, network="tc_resnet14"),
    ]
    for run, noise in zip(runs, ("here", "there")):
        change(run, noise_unseen=noise)
    rows = read_rows(runs)
    table = tables.in_noise(rows, rows[0]).split("Far")[0]
    last = [line for line in table.splitlines() if line.startswith("|")][-1]
    told = cells(last)
    assert told[1] == "90.00, +0.00 (+0.00 … +0.00)"
    assert told[2:] == ["70.00, other test", "50.00, other test", "60.00, other test"]


@pytest.mark.parametrize("source", ["synthetic", "folder"])
def test_clips_are_those_of_the_task_whatever_the_seed_of_the_training(
    tmp_path, source
):
    runs = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=1, network="tc_resnet14"),
        make_run(tmp_path / "c", seed=1, network="res15"),
    ]
    for run, task_seed in zip(runs, (0, 0, 1)):
        change(run, source=source, task_seed=task_seed)
    rows = read_rows(runs)
    lines = tables.overview(rows, rows[0]).splitlines()[2:]
    told = [cells(line)[-1] for line in lines]
    assert told == ["", "+0.00 (+0.00 … +0.00)", "other test"]


def test_far_clips_are_in_other_rooms_under_another_seed_of_the_test(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=0, network="tc_resnet14"),
    ]
    for run, seed in zip(runs, (0, 1)):
        config = json.loads((run / "config.json").read_text())
        config["evaluation"] = {"seed": seed}
        (run / "config.json").write_text(json.dumps(config))
    one, other = read_rows(runs)
    assert one.difference(other) is not None
    with pytest.raises(OtherClipsError):
        one.difference(other, ["far clean"])


def test_means_are_over_the_noise_that_all_rows_know(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=0, network="tc_resnet14"),
    ]
    results = json.loads((runs[1] / "results.json").read_text())
    few = [row for row in results if row["condition"] != "unseen 0 dB"]
    (runs[1] / "results.json").write_text(json.dumps(few))
    rows = read_rows(runs)
    lines = tables.overview(rows, None).splitlines()
    column = cells(lines[0]).index("unseen noise, %")
    assert [cells(line)[column] for line in lines[2:]] == ["70.00", "70.00"]
    assert tables.levels(rows) == (
        "Means in noise: unseen at 20 dB; far seen at 0 dB, 20 dB."
    )


def test_a_baseline_may_be_named_otherwise(tmp_path, monkeypatch):
    run = make_run(tmp_path / "a", seed=0)
    (row,) = read_rows([run])
    monkeypatch.chdir(tmp_path)
    assert row.holds(run.relative_to(tmp_path))
    assert not row.holds(tmp_path)


def flipped(content):
    middle = len(content) // 4
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def one_array(content):
    file = io.BytesIO()
    np.save(file, LABEL)
    return file.getvalue()


@pytest.mark.parametrize(
    "damage", [flipped, one_array, lambda c: b"", lambda c: c[:200]]
)
def test_damaged_answers_are_refused_by_name(tmp_path, damage):
    run = make_run(tmp_path / "a", seed=0)
    file = run / "predictions.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"predictions\.npz cannot be read"):
        read_rows([run])


def test_answers_without_the_clean_clips_are_refused(tmp_path):
    run = make_run(tmp_path / "a", seed=0)
    np.savez(run / "predictions.npz", label=LABEL, clean=LABEL[:50])
    with pytest.raises(UserError, match="no answers to the clean clips"):
        read_rows([run])


def test_workdir_without_results_is_refused(tmp_path):
    run = make_run(tmp_path / "a", seed=0)
    (run / "results.json").unlink()
    with pytest.raises(UserError, match=r"results\.json"):
        read_rows([run])


def test_plot_shows_every_row_on_the_curve_of_its_network(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=0, network="tc_resnet14", right=80),
    ]
    rows = read_rows(runs)
    page.write(rows, tmp_path / "plot.html")
    page_ = (tmp_path / "plot.html").read_text()
    for name, accuracy in (("tc_resnet8", "90.00"), ("tc_resnet14", "80.00")):
        assert f"{name} ×1.5: {accuracy} %, 1,000 parameters, 2.00 M" in page_
        assert f" {name}</span>" in page_
    # A panel of noise with both; where each row is in it.
    assert page_.count("<figure>") == 2
    assert "tc_resnet14 ×1.5, 0 dB: 50.00 %" in page_
    with pytest.raises(UserError, match="cannot be written"):
        page.write(rows, tmp_path / "nowhere" / "plot.html")


def test_a_network_that_is_given_is_on_no_curve_of_a_search(tmp_path):
    groups = []
    for seed, (layers, search) in enumerate(
        (("", True), ("E2K5,SKIP", True), ("E2K5,SKIP", False))
    ):
        run = make_run(tmp_path / f"{seed}", seed=seed, network="mbconv")
        config = json.loads((run / "config.json").read_text())
        config["network"]["layers"] = layers
        config["frontend"] = {"name": "sinc", "num_filters": 60}
        if search:
            config["search"] = {"method": "proxyless"}
        (run / "config.json").write_text(json.dumps(config))
        groups += [row.group for row in read_rows([run])]
    assert groups == ["proxyless sinc60", "given sinc60", "mbconv sinc60"]


def test_curves_are_of_searches_alone():
    def lines(searched):
        points = [
            size_plot.Point("group", searched, name, 1000.0 * size, 2e6, 0.9)
            for name, size in (("a", 1), ("b", 2))
        ]
        return size_plot.draw(points).count('class="line')

    assert (lines(True), lines(False)) == (1, 0)
