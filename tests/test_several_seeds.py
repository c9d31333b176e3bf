"""Several seeds of an experiment: at once as alone, and what is told of them."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from tiny_parts import killed_after_saving, tiny_config, tiny_parts
from words import KEYWORDS, on_words, write_words

from configs import convmixer, tc_resnet
from kws_jax import config as configs
from kws_jax import several_seeds
from kws_jax.comparison.rows import read_rows
from kws_jax.errors import UserError
from kws_jax.evaluation.over_seeds import mean_interval, over_seeds
from kws_jax.parts import load_setup
from kws_jax.report import seeds as seeds_report
from kws_jax.report.workdir import read_run
from kws_jax.stages import dispatch, networks, seeds_at_once, train
from kws_jax.stages.stacked_seeds import EachHighest, Member
from kws_jax.training.checkpoints import TO_GO_ON
from kws_jax.training.state import WEIGHTS

SEEDS = (4, 5)
CLIPS, BATCH, STEPS = 23, 8, 7


def config_of(*, stages=2, **changes):
    """A training of stages that are validated after steps 3, 6 and 7."""
    config = tiny_config(
        steps=STEPS, batch_size=BATCH, seed=SEEDS[0], seeds=len(SEEDS), **changes
    )
    config.log_every_steps = 2
    (stage,) = config.stages
    stage.eval_every_epochs = 3 * BATCH / CLIPS
    # So small that differences of rounding stay small.
    stage.optimizer.learning_rate = 0.01
    stage.spec_augment.update(time_masks=1, frequency_masks=1)
    later = stage.copy_and_resolve_references()
    later.update(name="later", optimizer_start="continue")
    config.stages = (stage, later)[:stages]
    return config


def run_at_once(folder, config, parts=None):
    """With `parts` that were used before, nothing is compiled again."""
    parts = parts or tiny_parts(config, clips=CLIPS)
    members = [Member(parts.of_seed(s), folder / f"seed-{s}") for s in SEEDS]
    for index in range(len(config.stages)):
        seeds_at_once.run(members, index, folder)
    return members


def run_alone(folder, config):
    """Each seed as if there were no other."""
    members = []
    for seed in SEEDS:
        own = config.copy_and_resolve_references()
        own.update(seed=seed, seeds=1)
        parts = tiny_parts(own, clips=CLIPS)
        if members:
            # Compiled programs depend on no seed.
            vars(parts)["_programs"] = members[0].parts._programs
        member = Member(parts, folder / f"seed-{seed}")
        for index in range(len(config.stages)):
            dispatch.run(member.parts, index, member.folder)
        members.append(member)
    return members


def best_of(member, index):
    model = networks.create_network(member.parts, member.folder)
    return train.best_state(member.parts, index, member.folder, model)


def lines_of(folder, *left_out):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    left_out = ("clips_per_second", *left_out)
    return [
        {k: v for k, v in json.loads(line).items() if k not in left_out}
        for line in lines
    ]


def assert_lines_near(actual, expected):
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, str):
                assert one[name] == value
            else:
                assert one[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name


@pytest.mark.parametrize("on_device", [False, True])
def test_seeds_at_once_learn_what_each_learns_alone(tmp_path, on_device):
    config = config_of(stages=1 if on_device else 2, on_device=on_device)
    if on_device:
        config.steps_per_call = 2
    together = run_at_once(tmp_path / "together", config)
    alone = run_alone(tmp_path / "alone", config)
    for one, other in zip(together, alone, strict=True):
        for index, stage in enumerate(config.stages):
            best, expected = (best_of(m, index) for m in (one, other))
            assert int(best.step) == int(expected.step)
            chex.assert_trees_all_close(best, expected, rtol=1e-3, atol=1e-4)
            rows = [
                {(r["split"], r["metric"]): r for r in json.loads(done.read_text())}
                for m in (one, other)
                for done in [m.folder / "stages" / f"{index}-{stage.name}/done.json"]
            ]
            assert rows[0].keys() == rows[1].keys()
            for key in {("validation", "accuracy"), ("train", "parameters")}:
                assert rows[0][key] == rows[1][key]
        assert_lines_near(lines_of(one.folder), lines_of(other.folder))


def test_seeds_start_apart_and_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    config = config_of(stages=1)
    one, other = run_at_once(tmp_path, config)
    first, second = (best_of(member, 0).trees[WEIGHTS] for member in (one, other))
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), first, second)
    assert min(jax.tree.leaves(apart)) > 0
    monkeypatch.setattr(seeds_at_once.loop, "train_stage", None)
    run_at_once(tmp_path, config)


def test_a_killed_training_of_seeds_ends_as_an_undisturbed_one(tmp_path):
    config = config_of()
    parts = tiny_parts(config, clips=CLIPS)
    whole = run_at_once(tmp_path / "whole", config, parts)
    folder = tmp_path / "killed"
    for kill in range(2):
        with killed_after_saving("0-" if kill == 0 else "1-"):
            run_at_once(folder, config, parts)
    again = run_at_once(folder, config, parts)
    for one, other in zip(again, whole, strict=True):
        for index in range(len(config.stages)):
            best, expected = (best_of(member, index) for member in (one, other))
            chex.assert_trees_all_equal(best, expected)
        assert lines_of(one.folder) == lines_of(other.folder)
    left_out = "clips_per_second"
    assert lines_of(folder, left_out) == lines_of(tmp_path / "whole", left_out)
    # The stacked states are no longer wanted.
    assert not list((folder / "stages").iterdir())


def test_a_lost_best_state_is_told_before_anything_is_made_of_it(tmp_path):
    config = config_of(stages=1)
    parts = tiny_parts(config, clips=CLIPS)
    with killed_after_saving("0-"):
        run_at_once(tmp_path, config, parts)
    assert seeds_at_once.begun(parts, 0, tmp_path) is True
    shutil.rmtree(tmp_path / "seed-5" / "stages")
    with pytest.raises(UserError, match=r"seed-5.*has lost its best state.*remove"):
        run_at_once(tmp_path, config, parts)
    shutil.rmtree(tmp_path / "stages")
    run_at_once(tmp_path, config, parts)


@pytest.mark.parametrize("kind", TO_GO_ON)
def test_a_stage_that_has_begun_in_turn_is_seen(tmp_path, kind):
    parts = tiny_parts(config_of(stages=1), clips=CLIPS)
    assert seeds_at_once.begun(parts, 0, tmp_path) is None
    where = tmp_path / "seed-5" / "stages" / "0-train" / kind
    where.mkdir(parents=True)
    assert seeds_at_once.begun(parts, 0, tmp_path) is None
    (where / "3").mkdir()
    assert seeds_at_once.begun(parts, 0, tmp_path) is False


@pytest.mark.parametrize("wish", configs.SEEDS_AT_ONCE)
@pytest.mark.parametrize("begun", [None, "", "seed-5"])
def test_a_stage_goes_on_as_it_began_whatever_is_asked_for(tmp_path, wish, begun):
    parts = tiny_parts(config_of(seeds_at_once=wish), clips=CLIPS)
    if begun is not None:
        (tmp_path / begun / "stages" / "0-train" / "last" / "3").mkdir(parents=True)
    chosen = several_seeds._stages_at_once(parts, tmp_path, Console(quiet=True))
    # These tests run on a CPU, where auto takes seeds in turn.
    asked = wish == "yes"
    assert chosen == {
        index
        for index, at_once in enumerate((asked if begun is None else not begun, asked))
        if at_once
    }


def test_optimisers_that_stand_at_different_steps_do_not_go_on_at_once():
    config = config_of()
    config.stages[0].stop.rule = "criterion"
    assert "different steps" in seeds_at_once.obstacle(tiny_parts(config), 1)
    config.stages[1].optimizer_start = "restart"
    assert seeds_at_once.obstacle(tiny_parts(config), 1) == ""
    config.front_filter.name = "dynamic_conv"
    assert "different epochs" in seeds_at_once.obstacle(tiny_parts(config), 1)
    config.stages[0].stop.rule = "length"
    assert seeds_at_once.obstacle(tiny_parts(config), 1) == ""


@pytest.mark.parametrize(
    ("word", "changes", "reason"),
    [
        ("din", {}, ""),
        ("light_conv", {}, ""),
        ("dynamic_conv", {}, "different epochs"),
        ("dynamic_conv", {"temperature_epochs": 0.0}, ""),
    ],
)
def test_filters_without_a_falling_temperature_go_on_at_once(word, changes, reason):
    words = f"curriculum,cpu,tc_resnet8,{word}"
    config = convmixer.get_config(words).copy_and_resolve_references().unlock()
    config.stages[-1].update(optimizer_start="restart", stop={"rule": "length"})
    config.front_filter.update(changes)
    told = seeds_at_once.obstacle(tiny_parts(config), len(config.stages) - 1)
    assert reason in told
    assert bool(told) == bool(reason)


def test_each_seed_keeps_the_first_of_its_own_best_states():
    rule = EachHighest(2)
    notes = dict(rule.first_notes)
    improved = []
    for accuracies in ((0.5, 0.1), (0.4, 0.3), (0.5, 0.3), (0.6, 0.2)):
        verdict = rule.judge(notes, dict(zip(("accuracy/0", "accuracy/1"), accuracies)))
        notes |= verdict.notes
        improved.append((verdict.best, notes["improved"]))
    assert improved == [(True, [0, 1]), (True, [1]), (False, []), (True, [0])]
    assert notes["best_accuracies"] == [0.6, 0.3]


def test_numbers_that_are_not_finite_are_told(tmp_path):
    config = config_of(stages=1)
    config.stages[0].optimizer.learning_rate = 1e30
    with pytest.raises(UserError, match="seeds_at_once=no"):
        run_at_once(tmp_path, config)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"kind": "search"}, "'search'"),
        ({"stop": {"rule": "criterion"}}, "stop.rule"),
        ({"data_parameters": {"mode": "joint"}}, "data parameters"),
    ],
)
def test_what_stands_against_training_at_once_is_told(changes, reason):
    config = config_of()
    config.stages[0].update(changes)
    told = seeds_at_once.obstacle(tiny_parts(config), 0)
    assert reason in told
    assert bool(told) == bool(reason)


def test_the_interval_of_the_mean_is_students():
    values = [0.93, 0.95, 0.942, 0.951]
    expected = stats.t.interval(
        0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
    )
    assert mean_interval(values) == pytest.approx(expected)
    assert mean_interval([0.5]) is None
    for wrong in ([], [1.0]), ([0.5, 0.6], [1.5]):
        with pytest.raises(ValueError, match="confidence"):
            mean_interval(wrong[0], *wrong[1])


def test_rows_that_all_seeds_have_are_averaged():
    def row(metric, value):
        return {
            "stage": "train",
            "split": "test",
            "condition": "clean",
            "metric": metric,
            "value": value,
        }

    runs = [
        [row("accuracy", 0.9), row("other", 1.0)],
        [row("accuracy", 0.8)],
        [row("accuracy", 1.0)],
    ]
    (mean,) = over_seeds(runs)
    assert mean["value"] == pytest.approx(0.9)
    assert mean["each"] == [0.9, 0.8, 1.0]
    assert mean["count"] == 3
    half = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert mean["ci95"] == pytest.approx([0.9 - half, 0.9 + half])


@pytest.fixture
def experiment_config(tmp_path):
    write_words(tmp_path / "words")
    config = tc_resnet.get_config("8")
    config.network.width = 0.25
    on_words(config, tmp_path)
    config.evaluation.update(snr_db=(10.0,), batch_size=16)
    config.stages[0].update(steps=4, batch_size=8)
    config.update(seed=1, seeds=2)
    return config


@pytest.mark.parametrize("at_once", ["yes", "auto"])
def test_an_experiment_tells_means_and_leaves_a_workdir_for_each_seed(
    experiment_config, tmp_path, capsys, at_once
):
    experiment_config.seeds_at_once = at_once
    configs.check(experiment_config)
    workdir = tmp_path / "run"
    arguments = ["--config=x.py"]
    rows = several_seeds.run(experiment_config, str(workdir), arguments)
    assert json.loads((workdir / "results.json").read_text()) == rows
    told = capsys.readouterr().out
    members = [read_run(workdir / name) for name in ("seed-1", "seed-2")]
    assert [run.config["seed"] for run in members] == [1, 2]
    for condition in ("clean", "seen 10 dB"):
        each = [run.find("accuracy", condition).value for run in members]
        (row,) = (
            r
            for r in rows
            if (r["split"], r["metric"]) == ("test", "accuracy")
            and r["condition"] == condition
        )
        assert row["each"] == each
        assert row["value"] == pytest.approx(np.mean(each))
        assert condition in told
    page = (workdir / "report.html").read_text()
    for name in ("seed-1", "seed-2"):
        assert f'href="{name}/report.html"' in page
        assert (workdir / name / "report.html").exists()
    # What is done is not done again, and gives the same.
    assert several_seeds.run(experiment_config, str(workdir), arguments) == rows
    # A seed that is named twice counts once.
    table = read_rows([workdir, workdir / "seed-1"])
    assert [len(row.runs) for row in table] == [2]
    command = json.loads((workdir / "seed-2" / "command.json").read_text())
    assert command == ["--config=x.py", "--config.seed=2", "--config.seeds=1"]
    again = f"--workdir=runs/{workdir.name}/seed-2-again"
    assert again in (workdir / "seed-2" / "report.html").read_text()
    network = dispatch.finished_network(
        load_setup(workdir / "seed-2"), workdir / "seed-2"
    )
    assert network.labels == (*KEYWORDS, "_unknown_", "_silence_")
    with pytest.raises(UserError, match="seed-1"):
        load_setup(workdir)
    with pytest.raises(UserError, match="seed-1"):
        configs.load_complete(workdir)
    experiment_config.seeds = 3
    with pytest.raises(UserError, match=r"config\.seeds: 2 there, 3 here"):
        several_seeds.run(experiment_config, str(workdir))


def test_asking_for_what_no_stage_can_do_is_refused(experiment_config, tmp_path):
    experiment_config.stages[0].stop.rule = "criterion"
    experiment_config.seeds_at_once = "yes"
    with pytest.raises(UserError, match=r"no stage can.*stop\.rule"):
        several_seeds.run(experiment_config, str(tmp_path / "run"))
    # So that "no" can be said in the same workdir.
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "config.seeds"),
        ({"seeds": 2, "seed": 2**32 - 1}, "2^32"),
        ({"seeds_at_once": "maybe"}, "seeds_at_once"),
    ],
)
def test_wrong_fields_are_refused(changes, message):
    config = tc_resnet.get_config("8")
    config.update(changes)
    with pytest.raises(UserError) as refused:
        configs.check(config)
    assert message in str(refused.value)


def test_workdirs_of_before_have_one_seed(tmp_path):
    config = tc_resnet.get_config("8").unlock()
    del config.seeds, config.seeds_at_once
    configs.check(config)
    configs.check_same(tc_resnet.get_config("8"), config, tmp_path)
    assert configs.seed_folders(config, tmp_path) == [tmp_path]


def test_shares_are_shown_within_their_bounds(tmp_path):
    runs = [
        {"stage": "train", "split": "test", "condition": "clean", "metric": "accuracy"}
        | {"value": value}
        for value in (0.96, 0.98)
    ]
    (tmp_path / "config.json").write_text('{"name": "<b>", "seeds": 2}')
    rows = over_seeds([[run] for run in runs])
    assert rows[0]["ci95"][1] > 1
    (tmp_path / "results.json").write_text(json.dumps(rows))
    seeds_report.write_page(tmp_path, [tmp_path / "seed-0", tmp_path / "seed-1"])
    page = (tmp_path / "report.html").read_text()
    assert "84.3 – 100.0 %" in page
    assert "<b></h1>" not in page
    assert "&lt;b&gt;" in page
