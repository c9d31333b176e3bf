"""Stages of another workdir: what takes them over ends as what ran them itself."""

import json
import shutil

import numpy as np
import pytest
from words import on_words

from configs import end_to_end_nas, tc_resnet
from kws_jax import config as configs
from kws_jax import experiment, several_seeds
from kws_jax.errors import UserError
from kws_jax.stages import taken
from kws_jax.stages.networks import GENOTYPE_FILE
from kws_jax.workdirs import read_arrays

pytestmark = pytest.mark.usefixtures("compiled_once")
# Of clocks, which no two runs have in common.
_TIMES = ("seconds", "training_seconds", "clips_per_second")


@pytest.fixture(scope="module")
def words(speech):
    return speech.parent


def small(config, words):
    config.unlock()
    on_words(config, words)
    config.evaluation.update(snr_db=(), batch_size=16)
    return config


def searched(words, *, last_steps):
    """A network that is drawn, trained with data parameters, and trained further."""
    config = small(end_to_end_nas.get_config("mfcc10,random,cpu"), words)
    # As few as leave something to be drawn.
    config.search.update(expansions=(1, 2), kernels=(3,), max_parameters=16_000)
    draw, train = config.stages
    train.update(epochs=0.0, steps=4, batch_size=8, eval_every_epochs=2 * 8 / 44)
    train.data_parameters.mode = "class"
    last = train.copy_and_resolve_references()
    last.update(name="last", steps=last_steps, optimizer_start="continue")
    config.stages = (draw, train, last)
    config.log_every_steps = 1
    return config


def trained(words, **changes):
    config = small(tc_resnet.get_config("8"), words)
    config.network.width = 0.25
    config.stages[0].update(steps=4, batch_size=8)
    config.update(changes)
    return config


def results_of(folder):
    rows = json.loads((folder / "results.json").read_text())
    return [row for row in rows if row["metric"] not in _TIMES]


def lines_of(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]


@pytest.fixture(scope="module")
def source(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    experiment.run(searched(words, last_steps=3), str(folder))
    return folder


def test_what_takes_stages_ends_as_what_ran_them(words, source, tmp_path, capsys):
    config = searched(words, last_steps=4)
    alone, taking = tmp_path / "alone", tmp_path / "taking"
    experiment.run(config, str(alone))
    capsys.readouterr()
    experiment.run(config, str(taking), stages_from=str(source))
    assert f"Taken from {source}: 'draw', 'train'\n" in capsys.readouterr().out
    # Taken, not made anew: its seconds are those of the source.
    one, other = (
        (folder / "stages/1-train/done.json").read_bytes()
        for folder in (source, taking)
    )
    assert one == other

    assert results_of(taking) == results_of(alone)
    assert (taking / "report.html").exists()
    logs = sorted(path.name for path in alone.glob("*.jsonl"))
    assert logs == ["data_parameters.jsonl", "metrics.jsonl"]
    for name in logs:
        assert lines_of(taking / name) == lines_of(alone / name), name
    for name in (GENOTYPE_FILE, "data_parameters.json"):
        assert (taking / name).read_text() == (alone / name).read_text(), name
    ours, theirs = (
        read_arrays(folder / "predictions.npz") for folder in (taking, alone)
    )
    assert {*ours} == {*theirs}
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_an_interrupted_copy_is_mended(words, source, tmp_path):
    config = searched(words, last_steps=3)
    folder = tmp_path / "run"
    experiment.run(config, str(folder), stages_from=str(source))
    expected, lines = results_of(folder), lines_of(folder / "metrics.jsonl")
    assert expected == results_of(source)

    # As a kill in the middle of the second stage leaves it.
    stage = folder / "stages/1-train"
    (stage / "done.json").unlink()
    shutil.rmtree(stage / "best")
    shutil.rmtree(folder / "stages/2-last")
    (folder / "results.json").unlink()
    experiment.run(config, str(folder), stages_from=str(source))
    assert results_of(folder) == expected
    assert lines_of(folder / "metrics.jsonl") == lines

    # And one between two stages.
    (folder / "stages/2-last/done.json").unlink()
    experiment.run(config, str(folder), stages_from=str(source))
    assert results_of(folder) == expected
    assert lines_of(folder / "metrics.jsonl") == lines
    summary = json.loads((folder / "data_parameters.json").read_text())
    assert {*summary} == {"train", "last"}
    assert summary == json.loads((source / "data_parameters.json").read_text())


def test_seeds_take_their_own_stages(words, tmp_path, capsys):
    config = trained(words, seeds=2)
    several_seeds.run(config, str(tmp_path / "one"))
    later = config.stages[0].copy_and_resolve_references()
    later.name = "later"
    config.stages = (*config.stages, later)
    capsys.readouterr()
    several_seeds.run(config, str(tmp_path / "other"), (), str(tmp_path / "one"))
    told = capsys.readouterr().out
    for seed in ("seed-0", "seed-1"):
        assert f"Taken from {tmp_path / 'one' / seed}: 'train'" in told
        assert (tmp_path / "other" / seed / "stages/1-later/done.json").exists()


def test_names_of_experiments_may_differ(words, source, tmp_path):
    config = searched(words, last_steps=3)
    config.name = "another"
    taken.check(config, source, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config.frontend.update(num_coefficients=20),
            r"config\.frontend\.num_coefficients: 10 there, 20 here",
        ),
        (
            lambda config: config.stages[0].update(name="lots"),
            r"config\.stages\[0\]\.name: 'draw' there, 'lots' here",
        ),
        (
            lambda config: config.network.update(name="res15"),
            r"config\.network\.name: 'mbconv' there, 'res15' here",
        ),
        (
            lambda config: config.network.__delitem__("layers"),
            r"config\.network\.layers: '' there, no such field here",
        ),
        (lambda config: config.update(seed=1), r"config\.seed: 0 there, 1 here"),
    ],
)
def test_another_experiment_has_no_stage_for_this(
    words, source, tmp_path, change, message
):
    config = searched(words, last_steps=3)
    change(config)
    with pytest.raises(UserError, match=message):
        experiment.run(config, str(tmp_path / "run"), stages_from=str(source))
    assert not (tmp_path / "run").exists()


def test_of_a_stage_that_differs_and_those_behind_nothing_is_taken(words, source):
    config = searched(words, last_steps=3)
    config.stages[1].optimizer.learning_rate = 0.01
    config.stages[2].optimizer.learning_rate = 0.01
    count, (reason,) = taken._same_stages(config, configs.load_workdir(source))
    assert count == 1
    assert "stages[1].optimizer.learning_rate" in reason


def test_what_is_no_finished_stage_is_refused(words, source, tmp_path):
    config = searched(words, last_steps=3)
    with pytest.raises(UserError, match="is the --workdir itself"):
        taken.check(config, source, source)
    with pytest.raises(UserError, match="holds no experiment"):
        taken.check(config, tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match="both be in buckets"):
        taken.check(config, source, "gs://bucket/run")
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    (copy / "stages/0-draw/done.json").unlink()
    with pytest.raises(UserError, match="'draw' has not been run to its end"):
        taken.check(config, copy, tmp_path / "run")


def test_other_data_are_refused_before_the_workdir_is_made(words, source, tmp_path):
    config = searched(words, last_steps=3)
    copy = tmp_path / "words"
    shutil.copytree(words / "words", copy)
    sorted((copy / "up").iterdir())[0].unlink()
    config.data.dir = str(copy)
    with pytest.raises(UserError, match="was started on other data"):
        experiment.run(config, str(tmp_path / "run"), stages_from=str(source))
    assert not (tmp_path / "run").exists()
