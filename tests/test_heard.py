"""Later tests of a trained network: what training heard is refused."""

import shutil

import numpy as np
import pytest
import soundfile
from rich.console import Console
from test_noise_folder import write
from test_rooms import decaying
from test_rooms import write as write_response
from tiny_parts import tiny_config
from words import on_words, write_words

from kws_jax import experiment, measuring
from kws_jax.errors import UserError
from kws_jax.parts import build_parts
from kws_jax.stages import runner

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Words of tones, noise and rooms."""
    folder = tmp_path_factory.mktemp("data")
    write_words(folder / "words")
    write(folder / "noise", ["car/a.wav", "car/b.wav", "car/c.wav", "hum.wav"], 8)
    write(folder / "other", ["rain/a.wav", "rain/b.wav"])
    for name in ("rooms", "office"):
        for room in range(4):
            seed = [*name.encode(), room]
            write_response(folder / name / f"r{room}" / "0.wav", decaying(500, seed))
    return folder


@pytest.fixture
def trained(folder, tmp_path):
    """Config and workdir of a network, taken for trained, with other settings."""

    def train(*, snr_db=(0.0,), far=0.5, **data):
        config = tiny_config()
        on_words(config, folder)
        config.data.update(data)
        config.stages[0].condition.update(snr_db=snr_db, reverberant_fraction=far)
        parts = build_parts(config, QUIET)
        workdir = tmp_path / "work"
        experiment.claim_workdir(parts, workdir)
        stage = runner.stage_folder(parts, 0, workdir)
        stage.mkdir(parents=True)
        (stage / runner.DONE_FILE).touch()
        return config, workdir

    return train


def later(config, workdir, **data):
    """The parts of a later test with other settings."""
    config = config.copy_and_resolve_references()
    config.data.update(data)
    return measuring.parts_of_trained(config, workdir, QUIET)


@pytest.mark.parametrize("field", ["test_fraction", "validation_fraction"])
def test_clips_are_not_divided_anew(folder, trained, tmp_path, field):
    made = trained(far=0.0, snr_db=())
    told = (
        rf"data\.{field}=0\.5 divides data\.dir=.* trained with 0\.1: .* clips that it"
    )
    with pytest.raises(UserError, match=told):
        later(*made, **{field: 0.5})
    spelled = str(folder / "noise" / ".." / "words")
    with pytest.raises(UserError, match=told):
        later(*made, **{field: 0.5, "dir": spelled})
    others = shutil.copytree(folder / "words", tmp_path / "words")
    assert len(later(*made, **{field: 0.5, "dir": str(others)}).task.test)
    later(*made, dir=spelled)


def test_noise_is_not_divided_anew(folder, trained):
    made = trained(far=0.0, noise_seen=str(folder / "noise"))
    told = r"noise_test_fraction=0\.9 divides data\.noise_seen=.* recordings that it"
    with pytest.raises(UserError, match=told):
        later(*made, noise_test_fraction=0.9)
    assert not later(*made, noise_test_fraction=0.0).noise
    other = later(*made, noise_test_fraction=0.9, noise_seen=str(folder / "other"))
    assert len(other.noise["seen"]) == 1


def test_noise_of_training_is_no_unseen_noise_later(folder, trained, tmp_path, capsys):
    made = trained(far=0.0, noise_seen=str(folder / "noise"))
    # Of three cars training has two; of the hum the first seconds.
    told = (
        r"data\.noise_unseen: .* unseen noise has .*\(3 of 4 recordings\), which this"
    )
    with pytest.raises(UserError, match=told):
        later(*made, noise_seen="", noise_unseen=str(folder / "noise"))
    copies = tmp_path / "copies"
    write(copies, ["rain.wav"])
    audio, rate = soundfile.read(folder / "noise" / "hum.wav", dtype="int16")
    soundfile.write(copies / "wind.wav", audio[rate:], rate)
    told = r"unseen noise has wind\.wav \(1 of 2 recordings\)"
    with pytest.raises(UserError, match=told):
        later(*made, noise_seen=str(folder / "other"), noise_unseen=str(copies))
    # The seconds that training did not hear.
    soundfile.write(copies / "wind.wav", audio[-2 * rate :], rate)
    tests = later(*made, noise_seen="", noise_unseen=str(copies)).noise
    assert len(tests["unseen"]) == 2
    capsys.readouterr()
    made[0].data.noise_seen = ""
    elsewhere = tmp_path / "elsewhere"
    (folder / "noise").rename(elsewhere)
    try:
        later(*made, noise_unseen=str(folder / "other"))
    finally:
        elsewhere.rename(folder / "noise")
    told = capsys.readouterr().err
    assert "note: whether training heard the test's noise cannot be told" in told
    assert "data.noise_seen of this workdir" in told


def test_other_hours_of_noise_do_not_give_the_test_what_training_heard(folder, trained):
    made = trained(far=0.0, noise_seen=str(folder / "noise"), noise_hours=18 / 3600)
    # At first a single car, cut in time; with a second one it is the test's.
    told = r"seen noise has car/a\.wav .*1 of 2 .* leave .* data\.noise_hours as"
    with pytest.raises(UserError, match=told):
        later(*made, noise_hours=24 / 3600)
    later(*made, noise_hours=20 / 3600)


def test_noise_that_no_stage_heard_may_be_heard_later(folder, trained):
    noise = str(folder / "noise")
    made = trained(far=0.0, snr_db=(), noise_seen=noise)
    assert len(later(*made, noise_test_fraction=0.9).noise["seen"]) == 2
    assert len(later(*made, noise_seen="", noise_unseen=noise).noise["unseen"]) == 4


def test_rooms_of_training_are_no_rooms_of_a_test(folder, trained, tmp_path, capsys):
    made = trained(snr_db=(), rooms=str(folder / "rooms"))
    told = r"rooms_test_fraction=0\.99 divides data\.rooms=.* rooms that it heard"
    with pytest.raises(UserError, match=told):
        later(*made, rooms_test_fraction=0.99)
    office = {"rooms": str(folder / "office"), "rooms_test_fraction": 0.99}
    assert len(later(*made, **office).test_rooms) == 3
    copies = shutil.copytree(folder / "office", tmp_path / "copies")
    for room in range(4):
        copy = soundfile.read(folder / "rooms" / f"r{room}" / "0.wav")[0]
        # Another level, a delay, and longer ones beside it.
        write_response(copies / f"r{room}" / "1.wav", np.append(np.zeros(99), copy / 2))
        write_response(copies / f"r{room}" / "2.wav", decaying(900, 50 + room))
    told = r"the test has r\d/1\.wav \(\d of 9 impulse responses\), which this network"
    with pytest.raises(UserError, match=told):
        later(*made, rooms=str(copies), rooms_test_fraction=0.99)
    capsys.readouterr()
    moved = tmp_path / "moved"
    (folder / "rooms").rename(moved)
    try:
        later(*made, **office)
    finally:
        moved.rename(folder / "rooms")
    told = capsys.readouterr().err
    assert "note: whether training heard the test's rooms cannot be told" in told


def test_rooms_of_a_folder_are_new_to_a_network_of_simulated_ones(folder, trained):
    pytest.importorskip("pyroomacoustics")
    small = {"number": 2, "t60_s": (0.2, 0.2), "length_m": (3.0, 4.0)}
    made = trained(snr_db=(), rooms="simulated", simulated_rooms=small)
    office = str(folder / "office")
    assert len(later(*made, rooms=office, rooms_test_fraction=0.99).test_rooms) == 3


def test_rooms_that_no_stage_heard_may_be_heard_later(folder, trained):
    made = trained(snr_db=(), far=0.0, rooms=str(folder / "rooms"))
    assert len(later(*made, rooms_test_fraction=0.99).test_rooms) == 3
