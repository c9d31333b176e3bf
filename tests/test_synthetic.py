"""Synthetic speech: it is speech, it is divided by voice, and it comes out the same."""

from typing import Any

import numpy as np
import pytest

from kws_jax.data import espeak, synthetic
from kws_jax.data.corpus import CLIP_SAMPLES, SPLITS, TEST, TRAIN, VALIDATION
from kws_jax.data.noise import NoiseBank
from kws_jax.data.synthetic_noise import SEEN, UNSEEN, make_noise
from kws_jax.errors import UserError

SETTINGS: dict[str, Any] = {
    "words": ("yes", "stop", "no", "left"),
    "other_words": ("house", "three"),
    "clips_per_word": 40,
    "seed": 5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(folder):
    return synthetic.synthesize_corpus(folder, **SETTINGS)


def _everything(corpus):
    noises = [corpus.background[s] for s in SPLITS]
    noises += [corpus.noise["seen"], corpus.noise["unseen"]]
    parts = [corpus.read(np.arange(len(corpus.words)))]
    parts += [recording.audio for group in noises for recording in group]
    return b"".join(np.asarray(part).tobytes() for part in parts)


def test_same_seed_gives_the_same_samples_and_another_does_not(
    corpus, tmp_path_factory
):
    def make(**changes):
        return synthetic.synthesize_corpus(
            tmp_path_factory.mktemp("other"), **{**SETTINGS, **changes}
        )

    again = make()
    assert _everything(again) == _everything(corpus)
    np.testing.assert_array_equal(again.names, corpus.names)
    assert again.fingerprint == corpus.fingerprint
    assert make(seed=6).fingerprint != corpus.fingerprint


def test_second_call_reads_the_store(corpus, folder, monkeypatch):
    def speak(utterances):
        raise AssertionError("made again")

    monkeypatch.setattr(espeak, "speak", speak)
    again = synthetic.synthesize_corpus(folder, **SETTINGS)
    assert again.fingerprint == corpus.fingerprint
    with pytest.raises(AssertionError, match="made again"):
        synthetic.synthesize_corpus(folder, **{**SETTINGS, "clips_per_word": 41})


def test_counts_of_clips(corpus):
    expected = {TRAIN: (40, 8), VALIDATION: (10, 2), TEST: (10, 2)}
    for split, (of_keyword, of_other) in expected.items():
        for word in SETTINGS["words"]:
            assert sum((corpus.words == word) & (corpus.splits == split)) == of_keyword
        for word in SETTINGS["other_words"]:
            assert sum((corpus.words == word) & (corpus.splits == split)) == of_other
    assert len(set(corpus.names)) == len(corpus.names)


def test_no_voice_is_in_two_splits(corpus):
    divided = synthetic.divide_voices(np.random.default_rng(0))
    assert sorted(v for voices in divided.values() for v in voices) == sorted(
        synthetic.VOICES
    )
    voices = {
        split: {s.split("-")[0] for s in corpus.speakers[corpus.splits == split]}
        for split in SPLITS
    }
    assert all(len(v) >= 5 for v in voices.values())
    assert not voices[TRAIN] & voices[TEST]
    assert not voices[TRAIN] & voices[VALIDATION]
    assert not voices[VALIDATION] & voices[TEST]


def _spectra(clips):
    """Log power in 24 bands over three thirds of the loud part: float [n, 72]."""
    features = []
    for clip in clips / 32768.0:
        frames = np.lib.stride_tricks.sliding_window_view(clip, 400)[::160]
        power = np.abs(np.fft.rfft(frames * np.hanning(400))) ** 2
        loud = np.flatnonzero(power.sum(1) > 1e-3 * power.sum(1).max())
        power = power[loud[0] : loud[-1] + 1]
        edges = np.geomspace(3, 200, 25).astype(int)
        bands = np.log(np.add.reduceat(power, edges, axis=1)[:, :-1] + 1e-9)
        bands -= bands.mean()  # the level says nothing about the word
        thirds = [part.mean(0) for part in np.array_split(bands, 3)]
        features.append(np.concatenate(thirds))
    return np.array(features)


def test_words_of_unheard_voices_are_told_apart_by_nearest_centroid(corpus):
    words = np.array(SETTINGS["words"])
    features, truth = {}, {}
    for split in (TRAIN, TEST):
        rows = np.flatnonzero((corpus.splits == split) & np.isin(corpus.words, words))
        features[split] = _spectra(corpus.read(rows))
        truth[split] = corpus.words[rows]
    centroids = np.array([features[TRAIN][truth[TRAIN] == w].mean(0) for w in words])
    distance = np.linalg.norm(features[TEST][:, None] - centroids, axis=-1)
    accuracy = np.mean(words[distance.argmin(1)] == truth[TEST])
    assert accuracy > 0.7  # chance is 0.25


def test_clips_are_short_words_at_the_stated_levels_placed_at_random(corpus):
    clips = corpus.read(np.arange(len(corpus.words))) / 32768.0
    assert np.abs(clips).max() < 1
    power = np.square(clips).reshape(len(clips), 100, 160).mean(2)
    # The hiss lies below -65 dBFS, the speech above -32.
    loud = [np.flatnonzero(p > 10**-4.8) for p in power]
    first, last = np.array([(frames[0], frames[-1]) for frames in loud]).T
    seconds = (last - first + 1) / 100
    assert 0.2 < seconds.min() < np.median(seconds) < 0.6
    assert seconds.max() < 0.9  # none was cut at the end of the clip
    assert first.min() < 10
    assert last.max() > 90
    level = 10 * np.log10([np.mean(p[f]) for p, f in zip(power, loud, strict=True)])
    assert -33 < level.min() < -28
    assert -18 < level.max() < -12


def test_noises_are_of_the_stated_kinds_and_differ_between_splits(corpus):
    for split in SPLITS:
        assert tuple(r.name for r in corpus.background[split]) == SEEN
    assert tuple(r.name for r in corpus.noise["seen"]) == SEEN
    assert tuple(r.name for r in corpus.noise["unseen"]) == UNSEEN
    for kind in range(len(SEEN)):
        audio = [corpus.background[split][kind].audio for split in SPLITS]
        assert not np.array_equal(audio[0], audio[1])
        assert not np.array_equal(audio[1], audio[2])
    bank = NoiseBank.from_recordings(corpus.noise["unseen"])
    assert (bank.lengths == 20 * CLIP_SAMPLES).all()


@pytest.mark.parametrize(
    ("kind", "slope"), [("white", 0), ("pink", -10), ("brown", -20)]
)
def test_coloured_noise_has_its_slope(kind, slope):
    audio = make_noise(kind, np.random.default_rng(1)).audio.astype(float)
    power = np.abs(np.fft.rfft(audio.reshape(-1, 16000))) ** 2
    low, high = power[:, 90:110].mean(), power[:, 900:1100].mean()
    assert 10 * np.log10(high / low) == pytest.approx(slope, abs=1)  # dB a decade


def test_progress_is_told_clip_by_clip(tmp_path):
    calls = []
    synthetic.synthesize_corpus(
        tmp_path,
        words=("go",),
        other_words=("tree",),
        clips_per_word=5,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i + 1, 10) for i in range(10)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": ()}, "at least one keyword"),
        ({"other_words": ("yes",)}, "at least one keyword"),
        ({"words": ("yes", "<break/>")}, "<break/>"),
        ({"clips_per_word": 0}, "at least 1 clip"),
    ],
)
def test_senseless_settings_are_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        synthetic.synthesize_corpus(tmp_path, **{**SETTINGS, **change})


@pytest.mark.parametrize(("accent", "voice"), [("xx-none", "f3"), ("en-us", "nobody")])
def test_unknown_voice_is_an_error_that_names_it(accent, voice):
    wrong = accent if accent == "xx-none" else voice
    with pytest.raises(UserError, match=f"no voice.*{wrong}"):
        list(espeak.speak([espeak.Utterance("yes", accent, voice)]))


def test_missing_library_is_told_to_the_user(tmp_path, monkeypatch):
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no such library.*pip install"):
        list(espeak.speak([espeak.Utterance("yes", "en-us", "f3")]))


def test_all_voices_and_accents_exist():
    utterances = [espeak.Utterance("go", "en-us", voice) for voice in synthetic.VOICES]
    utterances += [espeak.Utterance("go", accent, "m1") for accent in synthetic.ACCENTS]
    for samples in espeak.speak(utterances):
        assert 0.1 < len(samples) / espeak.ESPEAK_RATE < 0.9
        assert np.abs(samples).max() > 1000
