"""Audio files of all kinds become int16 mono at 16 kHz, and bad ones are named."""

import wave

import numpy as np
import pytest
import scipy.signal
import soundfile
from fake_speech_commands import tone, write_audio

from kws_jax.data.audio_files import find_audio, read_audio
from kws_jax.errors import UserError


def sine(rate, hertz=440.0, seconds=0.5, level=0.5):
    return level * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_16_khz_mono_comes_out_sample_by_sample(tmp_path, suffix):
    audio = tone("x")
    write_audio(tmp_path / f"a{suffix}", audio)
    read = read_audio(tmp_path / f"a{suffix}")
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, audio)


def test_wav_agrees_with_the_standard_library(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.array([0, 1, -1, 32_767, -32_768], "<i2").tobytes())
    assert read_audio(tmp_path / "a.wav").tolist() == [0, 1, -1, 32_767, -32_768]


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path, rate):
    write_audio(tmp_path / "a.wav", sine(rate), rate)
    read = read_audio(tmp_path / "a.wav") / 2**15
    reference = sine(16_000)
    assert abs(len(read) - len(reference)) <= 1
    middle = slice(1_000, 7_000)
    assert np.abs(read[middle] - reference[middle]).max() < 1e-3


def test_nothing_above_8_khz_folds_back(tmp_path):
    write_audio(tmp_path / "a.wav", sine(48_000, hertz=10_000), 48_000)
    spectrum = scipy.signal.periodogram(read_audio(tmp_path / "a.wav") / 2**15)[1]
    original = scipy.signal.periodogram(sine(16_000))[1]
    assert spectrum.max() < 1e-6 * original.max()


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([tone("left"), tone("right")], axis=1)
    write_audio(tmp_path / "a.wav", stereo)
    expected = stereo.astype(float).mean(axis=1)
    assert np.abs(read_audio(tmp_path / "a.wav") - expected).max() <= 0.5


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_24", "PCM_U8"])
def test_other_sample_formats_keep_their_level(tmp_path, subtype):
    write_audio(tmp_path / "a.wav", sine(16_000), subtype=subtype)
    expected = sine(16_000) * 2**15
    worst = 256 if subtype == "PCM_U8" else 1
    assert np.abs(read_audio(tmp_path / "a.wav") - expected).max() <= worst


def test_float_beyond_full_scale_is_clipped_and_does_not_wrap(tmp_path):
    write_audio(tmp_path / "a.wav", np.array([2.0, -2.0, 0.25]), subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav").tolist() == [32_767, -32_768, 8_192]


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_lossy_files_sound_alike(tmp_path, suffix):
    if suffix == ".mp3" and "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile cannot write mp3")
    write_audio(tmp_path / f"a{suffix}", sine(16_000, seconds=1.0))
    read = read_audio(tmp_path / f"a{suffix}") / 2**15
    level = np.sqrt(np.mean(read[2_000:14_000] ** 2))
    assert abs(level - 0.5 / np.sqrt(2)) < 0.01


def corrupt_files(folder):
    folder.mkdir(exist_ok=True)
    write_audio(folder / "short.flac", tone("x"))
    whole = (folder / "short.flac").read_bytes()
    (folder / "short.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no audio\n" * 50)
    write_audio(folder / "none.wav", np.zeros(0, np.int16))
    write_audio(folder / "nan.wav", np.array([0.0, np.nan]), subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    return sorted(path.name for path in folder.iterdir())


def test_bad_files_are_named(tmp_path):
    names = [*corrupt_files(tmp_path / "bad"), "missing.wav"]
    assert len(names) == 7
    for name in names:
        with pytest.raises(UserError, match=f"bad/{name} cannot be read as audio: ."):
            read_audio(tmp_path / "bad" / name)


def test_find_audio_is_sorted_and_leaves_out_the_rest(tmp_path):
    for name in ("b.wav", "a.FLAC", "c.ogg", "notes.txt", ".hidden.wav", "sub/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.name for path in find_audio(tmp_path)]
    assert names == ["a.FLAC", "b.wav", "c.ogg"]
    names = [path.name for path in find_audio(tmp_path, recursive=True)]
    assert names == ["a.FLAC", "b.wav", "c.ogg", "d.wav"]


@pytest.mark.parametrize("missing", [2, 3_000])
def test_wav_that_ends_early_is_refused_and_tells_how_early(tmp_path, missing):
    write_audio(tmp_path / "a.wav", tone("x"))
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[:-missing])
    size = 2 * len(tone("x"))
    with pytest.raises(UserError, match=f"{size - missing} of {size} bytes"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("length", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_wav_from_a_pipe_is_read_to_its_end(tmp_path, length):
    write_audio(tmp_path / "a.wav", tone("x"))
    content = bytearray((tmp_path / "a.wav").read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = length.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    if length:  # libsndfile itself takes an announced length of 0 at its word
        assert len(read_audio(tmp_path / "a.wav")) == len(tone("x"))
    else:
        with pytest.raises(UserError, match="no samples"):
            read_audio(tmp_path / "a.wav")


def test_wav_with_other_chunks_before_and_behind_the_audio_is_whole(tmp_path):
    write_audio(tmp_path / "a.wav", tone("x"))
    content = (tmp_path / "a.wav").read_bytes()
    place = content.index(b"data")
    note = b"note" + (3).to_bytes(4, "little") + b"abc" + b"\0"
    changed = content[:place] + note + content[place:] + note
    size = (len(changed) - 8).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(changed[:4] + size + changed[8:])
    assert len(read_audio(tmp_path / "a.wav")) == len(tone("x"))
