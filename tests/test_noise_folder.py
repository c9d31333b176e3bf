"""Noise folders in the layouts of the data sets, and what training and test share."""

import collections
import dataclasses
import io

import numpy as np
import pytest
import soundfile
from rich.console import Console
from tiny_parts import tiny_config
from words import KEYWORDS, write_words

from kws_jax import opening
from kws_jax.condition_names import SEEN, UNSEEN
from kws_jax.data import copies, noise_folder
from kws_jax.data.corpus import TEST, TRAIN, VALIDATION, Recording
from kws_jax.data.noise import NoiseBank
from kws_jax.data.noise_folder import open_noise
from kws_jax.data.splits import divide_background
from kws_jax.errors import UserError

RATE = 16_000


def write(folder, names, seconds=3.0):
    """Each file holds noise of its own, so that any shared second could be found."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(list(str(path).encode()))
        audio = rng.integers(-9000, 9000, int(seconds * RATE))
        soundfile.write(path, audio.astype(np.int16), RATE)
    return folder


def opened(seen="", unseen="", *, fraction=0.3, hours=2.0, source=(), background=None):
    return open_noise(
        {SEEN: str(seen), UNSEEN: str(unseen)},
        {SEEN: source},
        background or {},
        test_fraction=fraction,
        hours=hours,
    )


def divided(names, fraction=0.3, seconds=3):
    """The names that training and the test have, each of a sound of its own."""
    return divided_sounds({n: sound(n, seconds) for n in names}, fraction)


def sound(seed, seconds):
    rng = np.random.default_rng(list(str(seed).encode()))
    return rng.integers(-9000, 9000, round(seconds * RATE)).astype(np.int16)


def divided_sounds(sounds, fraction=0.3):
    parts = noise_folder.divide([Recording(*one) for one in sounds.items()], fraction)
    return [{recording.name for recording in part} for part in parts]


LAYOUTS = {
    "MUSAN": (
        [
            f"noise/{kind}/noise-{kind}-{i:04}.wav"
            for kind in ("free-sound", "sound-bible")
            for i in range(5)
        ],
        lambda name: name,
    ),
    "UrbanSound8K": (
        [
            f"audio/fold{1 + i % 3}/{fsid}-{fsid % 2}-0-{i}.wav"
            for fsid in range(100, 112)
            for i in range(3)
        ],
        lambda name: name.rpartition("/")[2].partition("-")[0],
    ),
    "ESC-50": (
        [
            f"audio/{1 + clip % 5}-{clip}-{take}-{clip % 3}.wav"
            for clip in range(1000, 1012)
            for take in "AB"
        ],
        lambda name: name.split("-")[1],
    ),
    "DCASE TAU": (
        [
            f"audio/{scene}-lyon-{place}-{segment}-a.wav"
            for scene in ("metro_station", "park")
            for place in range(4)
            for segment in range(2)
        ],
        lambda name: name.rsplit("-", 2)[0],
    ),
    "DCASE TUT": (
        [f"audio/a{i:03}_{s}_{s + 10}.wav" for i in range(6) for s in (0, 10)],
        lambda name: name.partition("_")[0],
    ),
    "plain": (
        [f"{kind}/{i}.wav" for kind in ("rain", "wind") for i in range(4)],
        lambda name: name,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_of_a_recording_stay_together_and_every_kind_is_in_both(layout):
    names, recording_of = LAYOUTS[layout]
    training, test = divided(names)
    assert training | test == set(names)
    assert not training & test
    recordings = [{recording_of(name) for name in part} for part in (training, test)]
    assert not recordings[0] & recordings[1]
    told = noise_folder.kinds_and_recordings(names)
    kinds = [{told[name][0] for name in part} for part in (training, test)]
    assert kinds[0] == kinds[1]
    assert len(recordings[1]) / len(recordings[0] | recordings[1]) == pytest.approx(
        0.3, abs=0.14
    )


def test_recording_with_slices_of_two_kinds_is_in_one_part():
    names = [f"{fsid}-{kind}-0-0.wav" for fsid in range(344, 364) for kind in (1, 2)]
    training, test = divided(names)
    first = [{name.partition("-")[0] for name in part} for part in (training, test)]
    assert test
    assert not first[0] & first[1]


@pytest.mark.parametrize("names", ["2024-{:02}-{:02}-1.wav", "{}-{:02}-2024-7.wav"])
def test_dated_names_are_recordings_of_their_own(names):
    names = [
        f"street/{names.format(month, day)}" for month in (3, 9) for day in (1, 30)
    ]
    told = noise_folder.kinds_and_recordings(names)
    assert told == {name: ("street", name) for name in names}
    training, test = divided(names)
    assert training | test == set(names)
    assert test
    assert not training & test


def test_own_division_of_wham_is_kept():
    names = [f"{part}/{i}.wav" for part in ("tr", "cv", "tt") for i in range(3)]
    training, test = divided(names, fraction=0.1)
    assert test == {f"tt/{i}.wav" for i in range(3)}
    assert training == set(names) - test


@pytest.mark.parametrize("above", ["", "wham_noise/", "noises/wham_noise/"])
def test_own_division_is_kept_beside_other_noise(above):
    own = {
        part: {f"{above}{part}/{i}.wav" for i in range(3)}
        for part in ("tr", "cv", "tt")
    }
    kinds = {kind: {f"{kind}/{i}.wav" for i in range(4)} for kind in ("rain", "wind")}
    lone, beside = "hum.wav", {f"{above}readme/{i}.wav" for i in range(2)}
    everything = set().union(*own.values(), *kinds.values(), beside, {lone})
    training, test = divided(sorted(everything), seconds=10)
    assert own["tt"] <= test - training
    assert own["tr"] | own["cv"] <= training - test
    # All else is divided as it would be without.
    rest = divided(sorted(everything - set().union(*own.values())), seconds=10)
    assert [part - set().union(*own.values()) for part in (training, test)] == rest
    assert all(kind & training and kind & test for kind in kinds.values())
    assert lone in training & test


def test_folders_named_like_a_division_in_different_places_are_none():
    names = [f"a/tr/{i}.wav" for i in range(4)] + [f"b/tt/{i}.wav" for i in range(4)]
    training, test = divided(names)
    assert all(part & set(names[:4]) for part in (training, test))
    assert all(part & set(names[4:]) for part in (training, test))


@pytest.mark.parametrize(
    "names", [["babble.wav", "white.wav"], ["rain/a.wav", "wind/b.wav"]]
)
def test_only_recording_of_a_kind_is_cut_in_time_with_a_clip_between(tmp_path, names):
    write(tmp_path, names, seconds=10)
    training, tests = opened(tmp_path)
    assert training.lengths.tolist() == [7 * RATE, 7 * RATE]
    assert tests[SEEN].lengths.tolist() == [2 * RATE, 2 * RATE]
    for i, name in enumerate(names):
        whole = soundfile.read(tmp_path / name, dtype="int16")[0]
        first, last = (
            bank.audio[bank.starts[i] :][: bank.lengths[i]]
            for bank in (training, tests[SEEN])
        )
        np.testing.assert_array_equal(first, whole[: 7 * RATE])
        np.testing.assert_array_equal(last, whole[8 * RATE :])


@pytest.mark.parametrize(
    ("samples", "training", "test"),
    [
        (7 * RATE, 4.9 * RATE, 1.1 * RATE),
        # The test's 0.3 of it are too short to give the gap as well.
        (5 * RATE, 3 * RATE, RATE),
        (3 * RATE, RATE, RATE),
        (3 * RATE - 1, 3 * RATE - 1, None),
    ],
)
def test_short_recordings_give_each_a_clip_while_they_can(samples, training, test):
    audio = np.arange(samples) % 3000 + 1
    parts = noise_folder.divide([Recording("hum", audio)], 0.3)
    assert [len(part.audio) for part in parts[0]] == [training]
    assert [len(part.audio) for part in parts[1]] == ([test] if test else [])
    if test:
        np.testing.assert_array_equal(parts[0][0].audio, audio[: int(training)])
        np.testing.assert_array_equal(parts[1][0].audio, audio[-int(test) :])


def test_recording_too_short_to_be_cut_is_for_training_alone(tmp_path, capsys):
    write(tmp_path, ["tick.wav"], seconds=2)
    training, tests = opened(tmp_path)
    assert training.lengths.tolist() == [2 * RATE]
    assert tests == {}
    told = capsys.readouterr()[1]
    assert "noise_seen: noise too short to be divided, for training alone: tick" in told
    assert f"config.data.noise_seen: {tmp_path} leaves nothing for the test" in told


def test_half_silent_recording_is_for_training_alone(capsys):
    audio = np.zeros(10 * RATE, np.int16)
    audio[:RATE] = 1000
    training, test = noise_folder.divide([Recording("bark", audio)], 0.3)
    assert (len(training[0].audio), test) == (10 * RATE, [])
    told = capsys.readouterr()[1]
    assert "would be silent in training or test, for training alone: bark" in told
    assert "too short" not in told


def test_recording_that_repeats_itself_is_for_training_alone(capsys):
    loop = np.tile(sound("rain", 5), 6)
    training, test = noise_folder.divide([Recording("rain", loop)], 0.2)
    assert (len(training[0].audio), test) == (30 * RATE, [])
    told = capsys.readouterr().err
    assert "noise that repeats itself, for training alone: rain" in told


def falling_silent(seed, seconds=12, loud=7):
    """Noise, and then a recorder's hiss of two units."""
    audio = np.random.default_rng(seed).normal(0, 3000, seconds * RATE)
    audio[loud * RATE :] *= 2 / 3000
    return np.rint(audio).astype(np.int16)


def test_hiss_of_a_recorder_is_no_noise_of_the_test(capsys):
    audio = falling_silent(0)
    for name, sounding, share in (("end", audio, 0.3), ("start", audio[::-1], 0.7)):
        training, test = noise_folder.divide([Recording(name, sounding)], share)
        assert (len(training[0].audio), test) == (12 * RATE, [])
        assert f"for training alone: {name}" in capsys.readouterr().err
    # Where some of the test's seconds sound, those alone are heard.
    ((first,), (last,)) = noise_folder.divide([Recording("a", audio)], 0.6)
    assert len(last.audio) == round(6.2 * RATE)
    bank = NoiseBank.from_recordings([last])
    crops = bank.cut(bank.first_samples(np.zeros(300), np.arange(300) / 300))
    assert crops.std(1).min() >= 0.009 * first.audio.std()


@pytest.mark.parametrize("thirds", [1, 2])
def test_hiss_of_a_recorder_is_no_noise_of_the_background_s_parts(capsys, thirds):
    hissing = [Recording(f"{i}.wav", falling_silent(i)) for i in range(thirds)]
    background = divide_background(hissing)
    training, tests = opened(source=background[TRAIN], background=background)
    assert (len(training), set(tests)) == (thirds, set())
    told = capsys.readouterr().err
    assert "the part of the background for the test is silent, and no noise: 0" in told
    hissing[-1] = Recording("9.wav", sound(9, 12))
    background = divide_background(hissing)
    tests = opened(source=background[TRAIN], background=background)[1]
    assert tests[SEEN].names == ("9.wav",)


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_copies_are_not_shared_by_training_and_test(tmp_path, capsys, start):
    whole = sound("a", 4)
    for name in "abcd":
        copy = whole[round(start * RATE) :] if name == "c" else whole
        path = tmp_path / "car" / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, copy, RATE)
    training, tests = opened(tmp_path)
    assert (len(training), tests) == (4, {})
    told = capsys.readouterr().err
    assert (
        "recordings that hold the same sound are divided as one: "
        "car/a.wav = car/b.wav = car/c.wav = car/d.wav" in told
    )
    write(tmp_path, ["car/e.wav", "car/f.wav"])
    training, tests = opened(tmp_path)
    assert len(training) + len(tests[SEEN]) == 6
    sides = [{name[4] for name in bank.names} for bank in (training, tests[SEEN])]
    assert any(set("abcd") <= side for side in sides)


def test_two_seconds_in_common_tell_a_copy_and_nothing_else_does():
    rng = np.random.default_rng(0)
    noises = rng.normal(0, 3000, (40, 4 * RATE)).astype(np.int16)
    marks = [copies.marks(noise) for noise in noises]
    before = rng.normal(0, 3000, RATE).astype(np.int16)
    for number, noise in enumerate(noises):
        part = copies.marks(np.append(before, noise[RATE : 3 * RATE]))
        assert [bool(part & own) for own in marks] == list(np.arange(40) == number)


def test_copies_in_other_kinds_and_under_other_names_of_recordings_are_one():
    names = [f"{fsid}-{fsid % 2}-0-0.wav" for fsid in range(344, 364)]
    sounds = {name: sound(name, 2) for name in names}
    sounds |= {f"rain/{i}.wav": sound(i, 2) for i in range(4)}
    for seed in range(20):
        copied, original = np.random.default_rng(seed).choice(list(sounds), 2, False)
        with_copy = sounds | {str(copied): sounds[original][RATE // 3 :]}
        training, test = divided_sounds(with_copy)
        assert training | test == set(sounds)
        assert not training & test
        assert {copied, original} <= training or {copied, original} <= test


def test_copies_across_a_data_set_s_own_division_are_refused_by_name():
    names = ["tr/a.wav", "tr/b.wav", "tt/a.wav"]
    sounds = {name: sound(name, 3) for name in names}
    sounds["tt/b.wav"] = sounds["tr/a.wav"]
    told = (
        r"tr/a\.wav \(for training\) and tt/b\.wav \(for the test\) hold the same sound"
    )
    with pytest.raises(UserError, match=told):
        divided_sounds(sounds)
    # Nothing of these lies in tt: hum.wav is cut in time.
    sounds["tt/b.wav"] = sound("b", 9)
    sounds["hum.wav"] = sound("hum", 9)
    sounds["tr/a.wav"] = sounds["hum.wav"][RATE:]
    cut = r"hum\.wav \(whose last seconds are for the test\)"
    with pytest.raises(UserError, match=cut + r" and tr/a\.wav \(for training\) hold"):
        divided_sounds(sounds)
    sounds["tr/a.wav"] = sound("a", 9)
    sounds["hum.wav"] = sounds["tt/b.wav"][RATE:]
    with pytest.raises(UserError, match=cut + r" and tt/b\.wav \(for the test\) hold"):
        divided_sounds(sounds)


def test_silence_and_its_clicks_make_no_copies():
    """What recordings of one recorder may share without a shared sound."""
    dither = np.random.default_rng(0).integers(-1, 2, 6 * RATE)
    sounds = {}
    for i in range(6):
        audio = dither.astype(np.int16) if i % 2 else np.zeros(6 * RATE, np.int16)
        begin = i * RATE // 3
        audio[begin : begin + RATE] = sound(i, 1)
        audio[5 * RATE :] = 0
        audio[5 * RATE + RATE // 2] = 40
        sounds[f"bark/{i}.wav"] = audio
    training, test = divided_sounds(sounds)
    assert (len(training), len(test)) == (4, 2)


def test_kind_of_one_recording_in_several_files_is_told(tmp_path, capsys):
    write(tmp_path, [f"344-3-0-{i}.wav" for i in range(3)])
    training, tests = opened(tmp_path)
    assert (len(training), tests) == (3, {})
    told = capsys.readouterr()[1]
    assert "of one recording in several files, for training alone: 344-3-0-0" in told
    assert "(3 files)" in told
    assert f"config.data.noise_seen: {tmp_path} leaves nothing for the test" in told
    write(tmp_path, ["rain/a.wav", "rain/b.wav"])
    assert len(opened(tmp_path)[1][SEEN]) == 1
    told = capsys.readouterr()[1]
    assert "344-3-0-0" in told
    assert "leaves nothing" not in told


def test_no_test_noise_is_asked_for(tmp_path, capsys):
    write(tmp_path, ["a.wav", "b.wav"], seconds=10)
    training, tests = opened(tmp_path, fraction=0.0)
    assert len(training) == 2
    assert tests == {}
    assert capsys.readouterr()[1] == ""


def test_channels_of_demand_are_one_recording_of_which_the_first_is_read(tmp_path):
    places = ("DKITCHEN", "TBUS")
    write(tmp_path, [f"{p}/ch{c:02}.wav" for p in places for c in (1, 2, 16)], 10)
    training, tests = opened(tmp_path)
    assert len(training) == len(tests[SEEN]) == 2
    first = soundfile.read(tmp_path / "DKITCHEN/ch01.wav", dtype="int16")[0]
    np.testing.assert_array_equal(training.audio[: 7 * RATE], first[: 7 * RATE])
    names = [f"{p}/ch{c:02}.wav" for p in places for c in range(1, 17)]
    recordings = noise_folder.kinds_and_recordings(names).values()
    assert {recording for _, recording in recordings} == set(places)


def test_hours_bound_what_is_read_and_every_kind_is_in_turn(tmp_path, capsys):
    names = [f"{kind}/{i}.wav" for kind in "abc" for i in range(4)]
    write(tmp_path, names, seconds=2)
    found = sorted(tmp_path.rglob("*.wav"))
    chosen = noise_folder.choose(tmp_path, found, hours=13 / 3600)
    assert len(chosen) == 6
    assert set(collections.Counter(p.parent.name for p in chosen).values()) == {2}
    assert chosen == noise_folder.choose(tmp_path, found, hours=13 / 3600)
    assert "6 of 12 files are taken" in capsys.readouterr().err
    assert noise_folder.choose(tmp_path, found, hours=1) == found
    training, tests = opened(unseen=tmp_path, hours=1 / 3600)
    assert training is None
    assert tests[UNSEEN].lengths.max() <= 2 * RATE


def test_noise_of_the_source_is_heard_in_the_test_by_what_was_held_out():
    kinds = {
        split: [Recording("hum", np.int16((np.arange(2 * RATE) % 2 * 2 - 1) * level))]
        for split, level in ((TRAIN, 1), (VALIDATION, 2), (TEST, 3))
    }
    training, tests = opened(source=kinds[TRAIN], background=kinds)
    assert set(abs(training.audio)) == {1}
    assert set(abs(tests[SEEN].audio)) == {3}
    del kinds[TEST]
    training, tests = opened(source=kinds[TRAIN], background=kinds)
    assert set(abs(tests[SEEN].audio)) == {2}
    assert opened(source=(), background=kinds) == (None, {})


def test_clipped_noise_is_taken_and_told(tmp_path, capsys):
    write(tmp_path, ["fine.wav"])
    loud = np.where(np.arange(3 * RATE) % 100, 5, 32767).astype(np.int16)
    soundfile.write(tmp_path / "loud.wav", loud, RATE)
    _, tests = opened(unseen=tmp_path)
    assert len(tests[UNSEEN]) == 2
    told = capsys.readouterr().err
    assert "clipped noise" in told
    assert "loud.wav" in told
    assert "fine.wav" not in told


@pytest.mark.parametrize("kind", [SEEN, UNSEEN])
@pytest.mark.parametrize("seconds", [2, 10])
def test_silent_noise_is_refused_with_its_field_and_folder(
    tmp_path, capsys, kind, seconds
):
    write(tmp_path, ["hiss.wav"], seconds=10)
    soundfile.write(tmp_path / "hole.wav", np.zeros(seconds * RATE, np.int16), RATE)
    told = rf"config\.data\.noise_{kind}: {tmp_path}: silent .*: hole\.wav\. .* remove"
    with pytest.raises(UserError, match=told):
        opened(**{kind: tmp_path})
    assert capsys.readouterr().err == ""


def test_folders_that_share_a_file_are_refused(tmp_path):
    write(tmp_path, ["seen/a.wav", "unseen/b.wav"])
    told = r"noise_unseen shares b\.wav .* with what training may hear"
    with pytest.raises(UserError, match=told):
        opened(tmp_path, tmp_path / "unseen")


@pytest.mark.parametrize(("begin", "end"), [(0.5, 0), (5.2, 0), (0, 4.5), (3.3, 2.3)])
def test_parts_of_a_file_of_the_other_folder_are_refused(tmp_path, begin, end):
    write(tmp_path, ["seen/a.wav", "seen/b.wav", "unseen/d.wav"], seconds=12)
    audio, _ = soundfile.read(tmp_path / "seen/b.wav", dtype="int16")
    part = audio[round(begin * RATE) : round((12 - end) * RATE)]
    before = np.zeros(RATE, np.int16)
    soundfile.write(tmp_path / "unseen/c.wav", np.append(before, part), RATE)
    with pytest.raises(UserError, match=r"noise_unseen shares c\.wav \(1 recordings"):
        opened(tmp_path / "seen", tmp_path / "unseen")


@pytest.mark.parametrize("kind", [SEEN, UNSEEN])
def test_a_copy_of_what_is_training_s_background_is_refused(tmp_path, kind):
    write(tmp_path, ["a.wav", "b.wav"], seconds=4)
    audio, _ = soundfile.read(tmp_path / "b.wav", dtype="int16")
    # as a source gives it: the first seconds, under another name
    background = {TRAIN: [Recording("hum", audio[: 2 * RATE])]}
    with pytest.raises(UserError, match=rf"noise_{kind} shares b\.wav \(1 recordings"):
        opened(**{kind: tmp_path}, background=background)
    background = {TRAIN: [Recording("hum", audio[::-1])]}
    opened(**{kind: tmp_path}, background=background)


def test_silent_seconds_are_left_out_and_told(tmp_path, capsys):
    write(tmp_path, ["dog/a.wav", "dog/b.wav", "hiss.wav"], seconds=4)
    for name in ("a", "b"):
        bark, _ = soundfile.read(tmp_path / f"dog/{name}.wav", dtype="int16")
        bark[RATE:] = 0
        soundfile.write(tmp_path / f"dog/{name}.wav", bark, RATE)
    training, tests = opened(tmp_path)
    told = capsys.readouterr().err
    # of three seconds of starts, those of the first have some of the bark in them
    listed = told.partition("that are silent are left out: ")[2].strip().split(", ")
    assert sorted(listed) == ["dog/a.wav (67 %)", "dog/b.wav (67 %)"]
    for bank in (training, tests[SEEN]):
        crops = bank.cut(bank.first_samples(*np.random.default_rng(0).random((2, 500))))
        assert np.all(np.square(crops, dtype=float).mean(1) > 100)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fraction": 1.0}, "noise_test_fraction"),
        ({"fraction": -0.1}, "noise_test_fraction"),
        ({"hours": 0.0}, "noise_hours"),
        ({"hours": float("nan")}, "noise_hours"),
        ({"seen": "nowhere"}, "nowhere is not a folder"),
    ],
)
def test_bad_settings_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        opened(**settings)


def test_folder_without_audio_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(UserError, match="holds no audio"):
        opened(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Words of tones, and two folders of noise."""
    folder = tmp_path_factory.mktemp("data")
    write_words(folder / "words")
    write(folder / "noise", ["hiss/a.wav", "hiss/b.wav"])
    write(folder / "other", ["hum/a.wav", "hum/b.wav"])
    return folder


def test_silent_background_is_refused_with_its_folder(tmp_path):
    write_words(tmp_path / "words")
    background = tmp_path / "words/_background_noise_"
    soundfile.write(background / "fan.wav", np.zeros(3 * RATE, np.int16), RATE)
    told = rf"{background} \(config\.data\.dir\): silent .*: fan\.wav"
    with pytest.raises(UserError, match=told):
        told_at_start(tmp_path)


def told_at_start(folder, *, seen="", unseen="", snr_db=(0.0,), stage_snr_db=(0.0,)):
    """The lines about noise and rooms, and the kinds of the tests to come."""
    config = tiny_config()
    config.data.update(
        source="folder",
        dir=str(folder / "words"),
        cache_dir=str(folder / "cache"),
        keywords=",".join(KEYWORDS),
        noise_seen=str(folder / seen) if seen else "",
        noise_unseen=str(folder / unseen) if unseen else "",
    )
    config.evaluation.snr_db = snr_db
    config.stages[0].condition.snr_db = stage_snr_db
    told = io.StringIO()
    opened = opening.open_data(config, Console(file=told, width=1000))
    lines = told.getvalue().splitlines()
    notes = [line for line in lines if line.startswith(("Noise:", "Rooms:"))]
    return notes, set(opened.noise)


def test_seen_noise_without_a_test_in_unseen_noise_is_told(folder):
    (line,), kinds = told_at_start(folder, seen="noise")
    assert kinds == {SEEN}
    assert "no test in unseen noise" in line
    assert "config.data.noise_unseen" in line


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, {SEEN}),
        ({"unseen": "other"}, {SEEN, UNSEEN}),
        ({"seen": "noise", "unseen": "other"}, {SEEN, UNSEEN}),
        ({"seen": "noise", "snr_db": ()}, {SEEN}),
    ],
)
def test_who_names_no_noise_or_has_or_wants_no_such_test_is_told_nothing(
    folder, settings, kinds
):
    assert told_at_start(folder, **settings) == ([], kinds)


def test_noise_that_no_stage_or_no_test_hears_is_told(folder, monkeypatch):
    notes, _ = told_at_start(folder, seen="noise", unseen="other", stage_snr_db=())
    assert notes == [
        "Noise: config.data.noise_seen is heard in the test alone; no stage has a "
        "condition.snr_db"
    ]
    open_corpus = opening._open_corpus

    def without_noise(*arguments):
        return dataclasses.replace(open_corpus(*arguments), noise={})

    monkeypatch.setattr(opening, "_open_corpus", without_noise)
    notes, kinds = told_at_start(folder)
    assert not kinds
    assert [line[:38] for line in notes] == ["Noise: there is no test in noise; conf"]


def test_unseen_noise_of_the_source_is_a_test_of_its_own(folder, monkeypatch):
    open_corpus = opening._open_corpus
    hum = Recording("hum", np.arange(2 * RATE, dtype=np.int16))

    def with_noise(*arguments):
        return dataclasses.replace(open_corpus(*arguments), noise={UNSEEN: (hum,)})

    monkeypatch.setattr(opening, "_open_corpus", with_noise)
    assert told_at_start(folder, seen="noise") == ([], {SEEN, UNSEEN})
