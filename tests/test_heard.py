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

from kws_jax import experiment, heard, measuring
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

    def train(*, snr_db=(0.0,), far=0.5, background_probability=0.8, **data):
        config = tiny_config()
        on_words(config, folder)
        config.data.update(data)
        config.stages[0].condition.update(
            snr_db=snr_db,
            reverberant_fraction=far,
            background_probability=background_probability,
        )
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
    # The background is the same, which is told by its sound.
    shutil.rmtree(others / "_background_noise_")
    names = [f"_background_noise_/{name}.wav" for name in "abc"]
    write(others, names)
    assert len(later(*made, **{field: 0.5, "dir": str(others)}).task.test)
    later(*made, dir=spelled)


def test_less_than_the_test_had_is_no_other_division(folder, trained, tmp_path):
    made = trained(far=0.0, snr_db=(), validation_fraction=0.3, test_fraction=0.3)
    before = set(later(*made).task.test.names)
    for fields in ({"validation_fraction": 0.1}, {"test_fraction": 0.1}):
        held_out = {"validation_fraction": 0.3, "test_fraction": 0.3} | fields
        parts = later(*made, **held_out)
        if "test_fraction" in fields:
            assert set(parts.task.test.names) < before
    # The border between both may move: training heard neither.
    later(*made, validation_fraction=0.15, test_fraction=0.45)
    with pytest.raises(UserError, match=r"data\.test_fraction=0\.35 divides"):
        later(*made, validation_fraction=0.3, test_fraction=0.35)


def test_a_folder_with_lists_is_not_divided_by_shares(folder, trained, tmp_path):
    listed = tmp_path / "listed"
    shutil.copytree(folder / "words", listed)
    clips = sorted(
        p.relative_to(listed).as_posix() for p in listed.glob("[a-z]*/*.wav")
    )
    for name, chosen in (("validation", clips[::3]), ("testing", clips[1::3])):
        (listed / f"{name}_list.txt").write_text("\n".join(chosen))
    made = trained(far=0.0, snr_db=(), dir=str(listed))
    before = later(*made).task.test.names
    assert later(*made, test_fraction=0.5).task.test.names.tolist() == before.tolist()


def test_noise_is_not_divided_anew(folder, trained):
    made = trained(far=0.0, noise_seen=str(folder / "noise"))
    told = r"seen noise has .* which this network heard.* data\.noise_test_fraction"
    with pytest.raises(UserError, match=told):
        later(*made, noise_test_fraction=0.9)
    # Less than it was for the test, of the hum seconds among those.
    assert len(later(*made, noise_test_fraction=0.2).noise["seen"]) == 2
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
    assert "cannot be told" not in capsys.readouterr().err


def test_what_training_heard_is_known_where_its_folder_is_no_more(
    folder, trained, tmp_path
):
    noise = shutil.copytree(folder / "noise", tmp_path / "noise")
    config, workdir = trained(far=0.0, noise_seen=str(noise))
    noise.rename(tmp_path / "moved")
    moved = {"noise_seen": "", "noise_unseen": str(tmp_path / "moved")}
    with pytest.raises(UserError, match=r"\(3 of 4 recordings\), which this network"):
        later(config, workdir, **moved)


def test_a_folder_that_grew_is_not_divided_anew(folder, trained, tmp_path):
    noise = tmp_path / "noise"
    write(noise, [f"car/{name}.wav" for name in "abcd"])
    made = trained(far=0.0, noise_seen=str(noise), noise_test_fraction=0.25)
    kept = later(*made).noise["seen"].names

    def grown(number):
        write(noise, [f"car/{number}.wav"])
        try:
            return later(*made).noise["seen"].names
        except UserError as error:
            return str(error)

    # Until the quarter of the smallest hashes is another.
    told = next(told for told in map(grown, range(9)) if told != kept)
    assert "take away recordings that were added since: they divide it anew" in told


@pytest.mark.parametrize("soft", [0.8, 0.0])
def test_background_of_training_is_no_noise_later(folder, trained, tmp_path, soft):
    silence = "background" if soft else "zeros"
    config, workdir = trained(
        far=0.0, snr_db=(), silence=silence, background_probability=soft
    )
    others = shutil.copytree(folder / "words", tmp_path / "words")
    shutil.rmtree(others / "_background_noise_")
    write(others, [f"_background_noise_/{name}.wav" for name in "abc"])
    background = str(folder / "words" / "_background_noise_")
    elsewhere = {"dir": str(others), "noise_unseen": background}
    if soft:
        told = r"unseen noise has .*\(1 of 3 recordings\), which this network heard"
        with pytest.raises(UserError, match=told):
            later(config, workdir, **elsewhere)
    else:
        assert len(later(config, workdir, **elsewhere).noise["unseen"]) == 3


def test_a_workdir_without_marks_says_so_where_it_matters(folder, trained, capsys):
    config, workdir = trained(far=0.0, noise_seen=str(folder / "noise"))
    (workdir / heard.FILE).unlink()
    later(config, workdir)
    assert "cannot be told" not in capsys.readouterr().err
    later(config, workdir, noise_unseen=str(folder / "other"))
    assert "note: whether training heard the test's noise" in capsys.readouterr().err


def test_other_hours_of_noise_do_not_give_the_test_what_training_heard(folder, trained):
    made = trained(far=0.0, noise_seen=str(folder / "noise"), noise_hours=18 / 3600)
    # At first a single car, cut in time; with a second one it is the test's.
    told = r"seen noise has car/a\.wav .*1 of 2 .* data\.noise_hours as they were"
    with pytest.raises(UserError, match=told):
        later(*made, noise_hours=24 / 3600)
    later(*made, noise_hours=20 / 3600)


def test_noise_that_no_stage_heard_may_be_heard_later(folder, trained):
    noise = str(folder / "noise")
    made = trained(far=0.0, snr_db=(), noise_seen=noise)
    assert len(later(*made, noise_test_fraction=0.9).noise["seen"]) == 2
    assert len(later(*made, noise_seen="", noise_unseen=noise).noise["unseen"]) == 4


def test_rooms_of_training_are_no_rooms_of_a_test(folder, trained, tmp_path):
    made = trained(snr_db=(), rooms=str(folder / "rooms"))
    told = r"impulse responses\), which this network heard.* leave data\.rooms_test_fr"
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


def test_rooms_of_a_folder_are_new_to_a_network_of_simulated_ones(folder, trained):
    pytest.importorskip("pyroomacoustics")
    small = {"number": 2, "t60_s": (0.2, 0.2), "length_m": (3.0, 4.0)}
    made = trained(snr_db=(), rooms="simulated", simulated_rooms=small)
    office = str(folder / "office")
    assert len(later(*made, rooms=office, rooms_test_fraction=0.99).test_rooms) == 3


def test_rooms_that_no_stage_heard_may_be_heard_later(folder, trained):
    made = trained(snr_db=(), far=0.0, rooms=str(folder / "rooms"))
    assert len(later(*made, rooms_test_fraction=0.99).test_rooms) == 3
