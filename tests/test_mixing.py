"""Noise bank and mixing, measured on the parts with NumPy in float64."""

import numpy as np
import pytest
import tensorflow as tf

from kws_jax.data import mixing, sounding
from kws_jax.data.conditions import CLEAN, Condition
from kws_jax.data.corpus import CLIP_SAMPLES, Recording
from kws_jax.data.noise import NoiseBank
from kws_jax.errors import UserError


def _noise(rng, shape, level):
    return np.rint(rng.normal(0, level, shape)).clip(-32768, 32767).astype(np.int16)


def _mix(speech, noise, snr_db, background=None, gain=None, speechless=None, **kwargs):
    b = len(speech)
    return mixing.mix(
        tf.constant(speech),
        None if background is None else tf.constant(background),
        tf.constant(np.zeros(b) if gain is None else gain, tf.float32),
        None if noise is None else tf.constant(noise),
        tf.constant(np.full(b, 10 ** (-snr_db / 20)), tf.float32),
        tf.constant(np.zeros(b, bool) if speechless is None else speechless),
        **kwargs,
    ).numpy()


def _amounts(mixture, *parts):
    """How much of each part is in the mixture, by least squares in float64."""
    basis = np.stack(parts, 1).astype(np.float64)
    return np.linalg.lstsq(basis, mixture.astype(np.float64), rcond=None)[0]


def _rms(audio):
    return np.sqrt(np.mean(np.square(audio.astype(np.float64)), -1))


@pytest.mark.parametrize("snr_db", [20.0, 5.0, 0.0, -10.0])
def test_achieved_snr_is_exact_also_where_the_peak_forces_scaling(snr_db):
    rng = np.random.default_rng(0)
    speech = np.zeros((3, CLIP_SAMPLES), np.int16)
    for clip, level in zip(speech, (1000, 3000, 9000), strict=True):
        clip[3000:9000] = _noise(rng, 6000, level)
    noise = _noise(rng, (3, CLIP_SAMPLES), 700)
    for clip, crop, mixed in zip(
        speech, noise, _mix(speech, noise, snr_db), strict=True
    ):
        s, n = _amounts(mixed, clip, crop)
        achieved = 20 * np.log10(s * _rms(clip) / (n * _rms(crop)))
        assert abs(achieved - snr_db) < 0.01
        # No more than rounding: a clipped mixture could not be told by its two parts.
        residue = mixed - s * clip.astype(float) - n * crop.astype(float)
        assert np.abs(residue).max() < 1
        assert s == pytest.approx(1, abs=1e-3) or np.abs(mixed).max() == 32767


def test_snr_is_set_against_the_clip_without_its_background():
    rng = np.random.default_rng(1)
    speech, background, noise = _noise(rng, (3, 2, CLIP_SAMPLES), 800)
    mixed = _mix(speech, noise, 3.0, background, np.array([0.0, 0.5]))
    for i, background_gain in enumerate([0.0, 0.5]):
        s, b, n = _amounts(mixed[i], speech[i], background[i], noise[i])
        assert b / s == pytest.approx(background_gain, abs=1e-3)
        ratio = 20 * np.log10(s * _rms(speech[i]) / (n * _rms(noise[i])))
        assert ratio == pytest.approx(3.0, abs=0.01)


def test_infinite_snr_leaves_the_clip_unchanged():
    rng = np.random.default_rng(2)
    speech, noise = _noise(rng, (2, 2, CLIP_SAMPLES), 2000)
    np.testing.assert_array_equal(_mix(speech, noise, np.inf), speech)


def test_silent_crop_leaves_the_clip_clean_and_finite():
    speech = _noise(np.random.default_rng(3), (1, CLIP_SAMPLES), 2000)
    mixed = _mix(speech, np.zeros_like(speech), -5.0)
    np.testing.assert_array_equal(mixed, speech)


@pytest.mark.parametrize("snr_db", [10.0, -5.0])
def test_silence_gets_the_noise_a_reference_clip_would_get(snr_db):
    rng = np.random.default_rng(4)
    speech = _noise(rng, (2, CLIP_SAMPLES), 30)
    speech[0] = 0
    noise = _noise(rng, (2, CLIP_SAMPLES), 500)
    mixed = _mix(
        speech, noise, snr_db, speechless=np.array([False, True]), reference_rms=0.02
    )
    expected = 0.02 * 10 ** (-snr_db / 20)
    for clip, crop, out in zip(speech, noise, mixed, strict=True):
        n = _amounts(out - clip.astype(float), crop)[0]
        assert n * _rms(crop) / 32768 == pytest.approx(expected, rel=1e-3)


def test_silence_with_silence_stays_zero():
    zero = np.zeros((1, CLIP_SAMPLES), np.int16)
    assert not _mix(zero, zero, 0.0, zero, np.ones(1)).any()


def test_shift_moves_whole_samples_and_fills_with_zeros():
    clips = np.arange(1, 9, dtype=np.int16)[None].repeat(5, 0)
    shifts = np.array([0, 2, -3, 8, -8])
    moved = mixing.shift_clips(clips, shifts)
    padded = np.pad(clips, ((0, 0), (8, 8)))
    for row, by in enumerate(shifts):
        np.testing.assert_array_equal(moved[row], padded[row, 8 - by : 16 - by])


def test_draws_have_the_stated_distributions():
    condition = Condition(
        shift_ms=100,
        background_probability=0.8,
        background_volume=0.1,
        snr_db=(10.0, 0.0),
        clean_fraction=0.25,
    )
    uniforms = np.random.default_rng(5).random((200_000, len(mixing.DRAWS)))
    what = mixing.draw(condition, uniforms)
    assert (what.shift.min(), what.shift.max()) == (-1600, 1600)
    assert abs(what.shift.mean()) < 10
    assert np.mean(what.background_gain > 0) == pytest.approx(0.8, abs=0.01)
    assert what.background_gain.max() <= 0.1
    assert what.background_gain[what.background_gain > 0].mean() == pytest.approx(
        0.05, abs=1e-3
    )
    assert np.mean(what.noise_level == 0) == pytest.approx(0.25, abs=0.01)
    for level in (10 ** (-10 / 20), 1.0):
        share = np.mean(np.isclose(what.noise_level, level, rtol=1e-6))
        assert share == pytest.approx(0.375, abs=0.01)


def test_clean_condition_draws_nothing():
    what = mixing.draw(CLEAN, np.random.default_rng(6).random((50, len(mixing.DRAWS))))
    assert not what.shift.any()
    assert not what.background_gain.any()
    assert not what.noise_level.any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shift_ms", -1.0),
        ("shift_ms", 1001.0),
        ("background_probability", 1.5),
        ("background_volume", float("nan")),
        ("clean_fraction", -0.1),
        ("snr_db", (float("inf"),)),
    ],
)
def test_senseless_condition_is_refused_by_field(field, value):
    with pytest.raises(UserError, match=field):
        mixing.check_condition(Condition(**{field: value}))


def test_crops_never_cross_a_border_and_reach_every_start():
    recordings = [
        Recording(str(i), np.int16((i + 1) * (1 - np.arange(length) % 2 * 2)))
        for i, length in enumerate(CLIP_SAMPLES + np.array([0, 1, 500]))
    ]
    bank = NoiseBank.from_recordings(recordings)
    u = np.random.default_rng(7).random((2, 3000))
    u[:, :4] = [[0, 0, 1 - 1e-16, 1 - 1e-16], [0, 1 - 1e-16, 0, 1 - 1e-16]]
    crops = abs(bank.cut(bank.first_samples(*u))) - 1
    assert (crops == crops[:, :1]).all()
    # Recordings are equally likely, whatever their lengths.
    for i in range(3):
        assert np.mean(crops[:, 0] == i) == pytest.approx(1 / 3, abs=0.03)


def test_crop_starts_are_uniform_over_all_valid_ones():
    ramp = np.arange(-8002, CLIP_SAMPLES - 7998, dtype=np.int16)
    bank = NoiseBank.from_recordings([Recording("ramp", ramp)])
    crops = bank.cut(bank.first_samples(np.zeros(5), np.arange(5) / 5 + 1e-9))
    np.testing.assert_array_equal(crops[:, 0], np.arange(5) - 8002)
    np.testing.assert_array_equal(crops[:, -1], np.arange(5) + CLIP_SAMPLES - 8003)


@pytest.mark.parametrize("length", [CLIP_SAMPLES // 2, 3 * CLIP_SAMPLES])
def test_the_offset_of_a_recorder_is_no_noise(length):
    sound = _noise(np.random.default_rng(5), length, 100)
    clip = _noise(np.random.default_rng(6), CLIP_SAMPLES, 1000)[None]
    bank = NoiseBank.from_recordings([Recording("a", sound + np.int16(300))])
    crop = bank.cut(bank.first_samples(np.zeros(1), np.full(1, 0.5)))
    mixture = _mix(clip, crop, 10.0).astype(float)
    # What the front end hears of the noise has the SNR that was asked for.
    heard = np.std(mixture - clip)
    assert 20 * np.log10(np.std(clip) / heard) == pytest.approx(10, abs=0.05)


def test_a_mean_that_does_not_matter_stays():
    sound = _noise(np.random.default_rng(5), 2 * CLIP_SAMPLES, 1000)
    sound += np.int16(20 - sound.mean())
    bank = NoiseBank.from_recordings([Recording("a", sound)])
    np.testing.assert_array_equal(bank.audio, sound)


def powers_of_crops(audio):
    """The variance of every crop, one by one."""
    places = range(len(audio) - CLIP_SAMPLES + 1)
    return np.array([audio[i : i + CLIP_SAMPLES].var() for i in places])


@pytest.mark.parametrize("offset", [0, 2000])
@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
def test_crops_begin_where_there_is_sound(monkeypatch, chunk, offset):
    monkeypatch.setattr(sounding, "_CHUNK", chunk)
    audio = _noise(np.random.default_rng(1), CLIP_SAMPLES + 2000, 900)
    audio[1000:-40] = 0
    audio[CLIP_SAMPLES + 600] = 3
    audio += offset
    powers = powers_of_crops(audio)
    assert sounding.power(audio, CLIP_SAMPLES) == pytest.approx(powers.mean())
    allowed = powers >= 1e-4 * powers.mean()
    assert 0.4 < allowed.mean() < 0.6
    ranges = sounding.sounding_ranges(audio, CLIP_SAMPLES)
    assert len(ranges) == 2
    found = np.concatenate([np.arange(*r) for r in ranges])
    np.testing.assert_array_equal(found, np.flatnonzero(allowed))


def test_every_sounding_start_is_drawn_alike_and_no_other():
    rng = np.random.default_rng(2)
    sparse = np.zeros(CLIP_SAMPLES + 40, np.int16)
    sparse[:3], sparse[-5:] = 50, 50
    recordings = [sparse, _noise(rng, CLIP_SAMPLES + 6, 900), sparse[::-1]]
    bank = NoiseBank.from_recordings(
        [Recording(str(i), r) for i, r in enumerate(recordings)]
    )
    np.testing.assert_array_equal(bank.choices, [8, 7, 8])
    np.testing.assert_allclose(bank.silent_shares, [33 / 41, 0, 33 / 41])
    for row, expected in enumerate([[0, 1, 2, *range(36, 41)], range(7), None]):
        if expected is None:
            expected = [*range(5), 38, 39, 40]
        count = len(expected)
        draws = (np.arange(count) + 0.5) / count
        first = bank.first_samples(np.full(count, (row + 0.5) / 3), draws)
        np.testing.assert_array_equal(first - bank.starts[row], expected)


def test_one_click_in_a_long_recording_is_enough():
    for place in (0, 20_000, 39_999):
        audio = np.zeros(40_000, np.int16)
        audio[place] = 1
        bank = NoiseBank.from_recordings([Recording("click", audio)])
        crops = bank.cut(bank.first_samples(np.zeros(200), np.arange(200) / 200))
        assert (np.count_nonzero(crops, axis=1) == 1).all()


def test_short_recording_is_looped_without_a_jump_or_a_change_of_level():
    t = np.arange(5000) / 16000
    tone = np.rint(8000 * np.sin(2 * np.pi * 211.7 * t)).astype(np.int16)
    hiss = _noise(np.random.default_rng(8), 5000, 1000)
    bank = NoiseBank.from_recordings([Recording("tone", tone), Recording("hiss", hiss)])
    assert (bank.lengths > CLIP_SAMPLES).all()
    starts = np.linspace(0, 1 - 1e-9, 20)
    tones = bank.cut(bank.first_samples(np.zeros(20), starts)).astype(int)
    # No step larger than a cross-faded tone of √2 times the amplitude can make.
    assert np.abs(np.diff(tones)).max() < 2 * np.abs(np.diff(tone.astype(int))).max()
    hisses = bank.cut(bank.first_samples(np.full(20, 0.5), starts))
    np.testing.assert_allclose(_rms(hisses), _rms(hiss), rtol=0.03)


def test_a_part_is_silent_where_its_recording_is():
    audio = _noise(np.random.default_rng(3), 4 * CLIP_SAMPLES, 2)
    own = sounding.sounding_ranges(audio, CLIP_SAMPLES)
    np.testing.assert_array_equal(own, [[0, 3 * CLIP_SAMPLES + 1]])
    for level, silent in ((150, False), (250, True)):
        assert len(sounding.sounding_ranges(audio, CLIP_SAMPLES, level**2)) != silent
        part = Recording("hiss", audio, float(level**2))
        if silent:
            with pytest.raises(UserError, match="recordings: hiss"):
                NoiseBank.from_recordings([part])
        else:
            NoiseBank.from_recordings([part])


@pytest.mark.parametrize("samples", [2, 3, 40])
def test_tiny_recording_is_looped_too(samples):
    bank = NoiseBank.from_recordings(
        [Recording("tick", np.int16(100 - np.arange(samples)))]
    )
    assert bank.cut(bank.first_samples(np.zeros(1), np.zeros(1))).any()


def test_silent_recordings_are_refused_by_name():
    hiss = Recording("hiss", _noise(np.random.default_rng(9), 20000, 1000))
    silent = [Recording("hole", np.zeros(20000, np.int16))]
    empty = [Recording("void", np.zeros(0, np.int16))]
    # Of a recorder with an offset; short ones are looped.
    silent += [Recording(str(n), np.full(n, -300, np.int16)) for n in (1, 900, 40_000)]
    with pytest.raises(UserError, match="hole, 1, 900, 40000, void"):
        NoiseBank.from_recordings([hiss, *silent, *empty])
    with pytest.raises(UserError, match="no noise recordings"):
        NoiseBank.from_recordings([])
