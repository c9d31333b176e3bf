"""Streams of known content, and files that tell the content of others."""

import dataclasses

import numpy as np
import pytest
import soundfile

from kws_jax.data.audio_files import audio_blocks, read_audio, seconds_of
from kws_jax.data.corpus import CLIP_SAMPLES, Recording, Split
from kws_jax.data.noise import NoiseBank
from kws_jax.data.stream import Bed, StreamSettings, plan_stream, render
from kws_jax.data.time_labels import read_spoken
from kws_jax.errors import UserError

RATE = 16_000
WORDS = ("yes", "no")
SETTINGS = StreamSettings(
    hours=0.05, keywords_per_hour=400, speech_share=0.3, noise_share=0.5, seed=7
)


def clips(keywords=30, others=40):
    """Clip i is filled with the value i + 1; two keywords by turns, then others."""
    count = keywords + others
    labels = np.where(np.arange(count) < keywords, np.arange(count) % 2, -1)
    names = np.array([str(i) for i in range(count)])
    return Split(
        "test",
        labels.astype(np.int32),
        names,
        names,
        lambda rows: np.repeat(np.int16(rows)[:, None] + np.int16(1), CLIP_SAMPLES, 1),
    )


def noise(level, seconds=4):
    audio = np.random.default_rng(0).normal(0, level, seconds * RATE)
    return NoiseBank.from_recordings([Recording("noise", audio.astype(np.int16))])


def audio_of(stream, **sounds):
    every = stream.words.read(np.arange(len(stream.words)))
    return list(render(stream, every, **sounds))


def test_a_stream_has_the_length_and_the_words_that_were_asked_for():
    stream = plan_stream(clips(), SETTINGS)
    assert (stream.words.labels >= 0).sum() == 20
    assert len(stream.words) == 0.3 * 180
    assert stream.samples == 180 * RATE
    assert (np.diff(stream.begins) >= CLIP_SAMPLES).all()
    assert stream.begins[0] >= 0
    assert stream.begins[-1] + CLIP_SAMPLES <= stream.samples
    assert stream.rounds == (1, 1)
    assert len(set(stream.words.names)) == len(stream.words)


def test_the_words_are_where_the_plan_says():
    stream = plan_stream(clips(), dataclasses.replace(SETTINGS, noise_share=0.0))
    pieces = audio_of(stream)
    assert max(map(len, pieces)) <= 10 * RATE
    audio = np.concatenate(pieces)
    expected = np.zeros(stream.samples, np.int16)
    for name, begin in zip(stream.words.names.tolist(), stream.begins.tolist()):
        expected[begin : begin + CLIP_SAMPLES] = int(name) + 1
    np.testing.assert_array_equal(audio, expected)
    spoken = stream.spoken(WORDS)
    assert len(spoken.words) == 20
    for begin, end, word in zip(spoken.begins, spoken.ends, spoken.words):
        heard = audio[round(begin * RATE) : round(end * RATE)]
        assert len(heard) == CLIP_SAMPLES
        assert set(heard.tolist()) == {heard[0]}
        assert word == WORDS[(int(heard[0]) - 1) % 2]


def test_the_seed_decides_everything():
    def audio(seed):
        stream = plan_stream(clips(), dataclasses.replace(SETTINGS, seed=seed))
        bed = Bed(noise(500), 0.01)
        return np.concatenate(audio_of(stream, background=noise(1000), bed=bed))

    np.testing.assert_array_equal(audio(1), audio(1))
    assert (audio(1) != audio(2)).mean() > 0.5


def test_clips_come_again_only_when_all_have_come():
    stream = plan_stream(clips(keywords=6, others=40), SETTINGS)
    times = np.unique(stream.words.names[stream.words.labels >= 0], return_counts=True)
    assert sorted(times[1].tolist()) == [3, 3, 3, 3, 4, 4]
    assert stream.rounds == (4, 1)


def test_gaps_hold_background_or_silence_in_the_share_that_was_asked_for():
    settings = dataclasses.replace(SETTINGS, hours=0.5)
    stream = plan_stream(clips(), settings)
    audio = np.concatenate(audio_of(stream, background=noise(8000)))
    ends = stream.begins[:-1] + CLIP_SAMPLES
    gaps = [audio[a:b] for a, b in zip(ends, stream.begins[1:]) if b - a > RATE // 10]
    noisy = [gap.any() for gap in gaps]
    assert 0.4 < np.mean(noisy) < 0.6


def test_the_bed_has_its_level_everywhere():
    stream = plan_stream(clips(), dataclasses.replace(SETTINGS, noise_share=0.0))
    audio = np.concatenate(audio_of(stream, bed=Bed(noise(3000), 0.02)))
    clean = np.concatenate(audio_of(stream))
    parts = np.array_split((audio - clean.astype(float)) / 32768, 20)
    levels = [np.sqrt(np.mean(part**2)) for part in parts]
    np.testing.assert_allclose(levels, 0.02, rtol=0.03)


def with_silence(seed, sounding, silent, times):
    """A recording of white noise that is silent by turns, int16."""
    rng = np.random.default_rng(seed)
    turn = np.repeat([1.0, 0.0], [round(sounding * RATE), round(silent * RATE)])
    hiss = np.tile(turn, times) * rng.normal(0, 3000, len(turn) * times)
    return Recording(f"noise {seed}", np.rint(hiss).astype(np.int16))


@pytest.mark.parametrize(
    "recordings",
    [
        [with_silence(0, 2.5, 2.5, 4)],
        [with_silence(0, 30, 30, 1), with_silence(1, 1.2, 3, 5)],
        [Recording("late", with_silence(0, 4, 4, 2).audio[::-1])],
    ],
)
def test_no_second_of_the_bed_is_silent_where_its_recordings_are(recordings):
    stream = plan_stream(clips(), dataclasses.replace(SETTINGS, noise_share=0.0))
    bank = NoiseBank.from_recordings(recordings)
    audio = np.concatenate(audio_of(stream, bed=Bed(bank, 0.02)))
    clean = np.concatenate(audio_of(stream))
    bed = (audio - clean.astype(float)) / 32768
    seconds = np.sqrt(np.mean(bed[: len(bed) // RATE * RATE].reshape(-1, RATE) ** 2, 1))
    assert len(seconds) == 180
    assert np.abs(20 * np.log10(seconds / 0.02)).max() < 1
    longest = max(map(len, "".join("01"[bool(x)] for x in bed).split("1")))
    assert longest < RATE // 20


def test_ticks_stay_apart_in_the_bed():
    """Silence of less than a second is part of a noise."""
    tick = np.zeros(12 * RATE, np.int16)
    tick[RATE // 2 :: RATE] = 9000
    stream = plan_stream(clips(), dataclasses.replace(SETTINGS, noise_share=0.0))
    bed = Bed(NoiseBank.from_recordings([Recording("tick", tick)]), 0.01)
    heard = np.concatenate(audio_of(stream, bed=bed))
    clean = np.concatenate(audio_of(stream))
    ticks = np.flatnonzero(heard.astype(int) - clean > 100)
    assert np.median(np.diff(ticks)) == RATE
    assert np.diff(ticks).max() <= RATE


def test_nothing_is_clipped():
    stream = plan_stream(clips(), dataclasses.replace(SETTINGS, noise_share=0.0))
    pieces = audio_of(stream, bed=Bed(noise(3000), 0.8))
    assert all(abs(piece.astype(int)).max() <= 32767 for piece in pieces)
    # Scaled as a whole: the peak is reached once in each turn of the noise, not often.
    assert max((abs(p.astype(int)) == 32767).sum() for p in pieces) <= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keywords_per_hour": 0}, "without keywords"),
        ({"hours": 0}, "config.detection.hours = 0"),
        ({"speech_share": 0.05}, "do not fit into speech_share = 0.05"),
        ({"noise_share": 1.5}, "config.detection.noise_share = 1.5"),
    ],
)
def test_settings_that_no_stream_can_have_are_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_missing_clips_and_background_are_named():
    with pytest.raises(UserError, match=r"no clips of other words.*speech_share to"):
        plan_stream(clips(others=0), SETTINGS)
    with pytest.raises(UserError, match="no clip of a keyword"):
        plan_stream(clips(keywords=0), SETTINGS)
    with pytest.raises(UserError, match="noise_share to 0"):
        audio_of(plan_stream(clips(), SETTINGS))


def test_the_share_in_the_error_is_one_that_works():
    with pytest.raises(UserError) as error:
        plan_stream(clips(others=0), SETTINGS)
    share = float(str(error.value).split("speech_share to ")[1].split(",")[0])
    settings = dataclasses.replace(SETTINGS, speech_share=share)
    assert (plan_stream(clips(others=0), settings).words.labels >= 0).all()


def spoken_of(text, tmp_path, seconds=10.0):
    path = tmp_path / "times.csv"
    path.write_text(text)
    labels = (*WORDS, "_unknown_")
    return read_spoken(path, seconds=seconds, labels=labels, keywords=WORDS)


@pytest.mark.parametrize(
    "text", ["start,end,word\n3,4.5,no\n1,2,yes\n", "3\t4.5\tno\n1\t2\tyes"]
)
def test_times_are_read_in_order_with_or_without_titles(text, tmp_path):
    spoken = spoken_of(text, tmp_path)
    assert spoken.words == ("yes", "no")
    assert spoken.begins.tolist() == [1.0, 3.0]
    assert spoken.of("no")[1].tolist() == [4.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,yse\n", r"line 1: the network has no label 'yse'; did you mean 'yes'"),
        ("1,2,yes\n9,10.5,no\n", r"line 2: 9 to 10.5 s lies outside .* 10.000 s"),
        ("2,1,yes\n", "line 1: 2 to 1 s is no stretch"),
        ("1,2\n", "line 1: '1,2'. Expected lines of start_seconds"),
        ("1,2,yes\nx,2,no\n", "line 2: 'x,2,no'"),
        ("1,2,_unknown_\n", "names no keyword"),
        ("", "names no keyword"),
    ],
)
def test_labels_that_cannot_be_used_are_told_by_line(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        spoken_of(text, tmp_path)


def test_labels_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "times.csv"
    with pytest.raises(UserError, match=r"times\.csv cannot be read"):
        read_spoken(path, seconds=1, labels=WORDS, keywords=WORDS)
    path.write_bytes(b"\xff\xfe\x00\x00")
    with pytest.raises(UserError, match=r"times\.csv cannot be read"):
        read_spoken(path, seconds=1, labels=WORDS, keywords=WORDS)


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_a_file_in_pieces_is_the_whole_file(rate, channels, tmp_path):
    t = np.arange(round(3.3 * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 440 * t)[:, None] * np.ones(channels)
    soundfile.write(tmp_path / "a.wav", wave, rate)
    pieces = list(audio_blocks(tmp_path / "a.wav", seconds=0.7))
    assert len(pieces) == 5
    whole = read_audio(tmp_path / "a.wav")
    joined = np.concatenate(pieces)
    assert abs(len(joined) - len(whole)) <= 1
    length = min(len(joined), len(whole))
    difference = joined[:length].astype(int) - whole[:length]
    assert abs(difference).max() <= (0 if rate == RATE else 2)
    assert seconds_of(tmp_path / "a.wav") == pytest.approx(3.3, abs=1e-3)


def test_files_that_are_no_audio_are_told(tmp_path):
    (tmp_path / "a.wav").write_text("hello")
    for read in (lambda p: list(audio_blocks(p)), seconds_of):
        with pytest.raises(UserError, match=r"a\.wav cannot be read as audio"):
            read(tmp_path / "a.wav")
        with pytest.raises(UserError, match=r"b\.wav cannot be read as audio: No such"):
            read(tmp_path / "b.wav")
