"""Scores of frames in continuous audio: against NumPy, in pieces, and in detection."""

import functools
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from rich.console import Console
from test_detect import ToneNetwork, tiny_config
from words import KEYWORDS, LABELS, WORDS, write_words

from configs import data_parameters as config_file
from kws_jax import detect, experiment
from kws_jax.data.time_labels import Spoken
from kws_jax.errors import UserError
from kws_jax.evaluation import det_curve
from kws_jax.evaluation import detection as counting
from kws_jax.evaluation.frame_scores import create_frame_scorer, heard_frames
from kws_jax.frontends.registry import create_frontend
from kws_jax.models.acoustic_dnn import AcousticDNN
from kws_jax.models.tc_resnet import TCResNet
from kws_jax.parts import build_parts
from kws_jax.report.page import write_report
from kws_jax.stages import acoustic, detection, dispatch, listeners

RATE, HOP, WINDOW = 16_000, 160, 480
CONTEXT, STATES = 2, 2
KEYS = len(KEYWORDS)


def tone(word, seconds, rng):
    t = np.arange(round(seconds * RATE)) / RATE
    hertz = WORDS[word] * rng.uniform(0.96, 1.04)
    return 0.3 * np.sin(2 * np.pi * hertz * t) + 0.003 * rng.normal(size=len(t))


def as_int16(wave):
    return np.rint(32767 * wave).astype(np.int16)


@pytest.fixture(scope="module")
def acoustic_model():
    """Emissions by hand: a linear layer on MFCCs that tells the tones of words apart.

    It is Gaussians of one covariance, fitted to frames of tones, whose log-likelihoods
    are linear in the features; both states of a word are its tone.
    """
    frontend = create_frontend("mfcc", num_coefficients=13)
    rng = np.random.default_rng(0)
    sounds = [*KEYWORDS, "cat", "dog", "tree"]
    audio = [tone(word, 1, rng) for word in sounds for _ in range(2)]
    audio += [0.003 * rng.normal(size=RATE) for _ in range(2)]
    program = jax.jit(frontend)
    x = np.asarray(program(as_int16(np.stack(audio))), np.float64)
    x = x.reshape(len(sounds) + 1, -1, 13)
    means = x.mean(1)
    noise = (x - means[:, None]).reshape(-1, 13)
    inverse = np.linalg.inv(noise.T @ noise / len(noise) + 0.3 * np.eye(13))
    weights = 0.05 * means @ inverse  # flatter, as what networks learn
    bias = -0.5 * np.einsum("sf,sf->s", weights, means)
    rows = [*np.repeat(np.arange(KEYS), STATES), KEYS, len(sounds)]
    model = AcousticDNN(len(LABELS), states=STATES, depth=0, context=CONTEXT)
    kernel = np.zeros((2 * CONTEXT + 1, 13, len(rows)))
    kernel[:] = weights[rows].T / (2 * CONTEXT + 1)  # the mean of the frames seen
    head = {"kernel": kernel.reshape(-1, len(rows)), "bias": bias[rows]}
    prior = np.array([0.05] * KEYS * STATES + [0.3, 0.4])
    # Statistics of the features that do nothing.
    norm = {"mean": np.zeros(13), "var": np.full(13, 1 - 1e-5)}
    statistics = {"norm": norm, "prior": prior, "updates": np.zeros(())}
    variables = jax.tree.map(
        jnp.float32, {"params": {"head": head}, "batch_stats": statistics}
    )

    def features(audio):
        """Of at most three seconds; a frame does not depend on what is behind it."""
        padded = np.pad(audio, (0, 3 * RATE - len(audio)))
        return np.asarray(program(padded[None])[0, : 1 + (len(audio) - WINDOW) // HOP])

    return SimpleNamespace(
        frontend=frontend, model=model, variables=variables, features=features
    )


@pytest.fixture(scope="module")
def scorer_of(acoustic_model):
    """Scorers by the frames of their pieces, each compiled once."""
    return functools.cache(
        lambda frames: create_frame_scorer(
            acoustic_model.model,
            acoustic_model.variables,
            acoustic_model.frontend,
            frames,
        )
    )


def said():
    """Keywords of 0.4 s, another word, and when the keywords are said."""
    rng = np.random.default_rng(3)
    wave = 0.003 * rng.normal(size=12 * RATE)
    placed = [("up", 1.3), ("cat", 3.1), ("stop", 4.75), ("down", 7.02), ("up", 10.4)]
    for word, begin in placed:
        first = round(begin * RATE)
        wave[first : first + round(0.4 * RATE)] += tone(word, 0.4, rng)
    known = [(begin, word) for word, begin in placed if word in KEYWORDS]
    begins = np.array([begin for begin, _ in known])
    return as_int16(wave), Spoken(begins, begins + 0.4, tuple(w for _, w in known))


def literal_scores(made, audio):
    """Frame by frame in NumPy: splice, layer, two Viterbi recursions, their difference.

    The recursion of a word has the filler as a place of its own, from which it starts.
    The odds of a word are those of its share against all others' and the filler's.
    """
    x = made.features(audio).astype(np.float64)
    statistics, head = made.variables["batch_stats"], made.variables["params"]["head"]
    x = (x - statistics["norm"]["mean"]) / np.sqrt(statistics["norm"]["var"] + 1e-5)
    n = len(x)
    seen = [
        np.concatenate(
            [x[min(max(t + d, 0), n - 1)] for d in range(-CONTEXT, CONTEXT + 1)]
        )
        for t in range(n)
    ]
    z = np.array(seen) @ np.asarray(head["kernel"], np.float64) + head["bias"]
    z -= np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
    z -= z.max(1, keepdims=True)  # what all states share cancels in the ratio
    z -= np.log(np.asarray(statistics["prior"], np.float64))
    filler = np.maximum(z[:, -2], z[:, -1])
    ratios = np.full((n, KEYS), -np.inf)
    for word in range(KEYS):
        places = np.array([0.0] + [-np.inf] * STATES)
        background = 0.0
        for t in range(n):
            new = places.copy()
            new[0] = places[0] + filler[t]
            for j in range(1, STATES + 1):
                came = max(places[j], places[j - 1])
                new[j] = came + z[t, word * STATES + j - 1]
            places, background = new, background + filler[t]
            ratios[t, word] = places[-1] - background
    e = np.exp(0.1 * ratios)
    rivals = [1 + np.delete(e, word, axis=1).sum(1) for word in range(KEYS)]
    return 0.1 * ratios - np.log(np.stack(rivals, axis=1))


def test_scores_of_a_stream_are_those_of_viterbi_in_numpy(acoustic_model, scorer_of):
    audio = said()[0][: 3 * RATE]
    found = scorer_of(7).scores([audio])
    assert found.shape == (1 + (len(audio) - WINDOW) // HOP, KEYS)
    expected = literal_scores(acoustic_model, audio)
    assert np.isneginf(found[: STATES - 1]).all()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


def test_pieces_and_blocks_of_any_length_give_the_scores_of_one_pass(scorer_of):
    audio = said()[0][: 5 * RATE]
    whole = scorer_of(512).scores([audio])
    for frames, block in ((7, 999), (7, 80_000), (512, 7_001)):
        blocks = [audio[i : i + block] for i in range(0, len(audio), block)]
        found = scorer_of(frames).scores(blocks)
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [1, WINDOW, WINDOW + HOP, 9 * HOP + WINDOW + 7])
def test_ends_of_audio_are_seen_as_in_one_pass(acoustic_model, scorer_of, samples):
    audio = said()[0][RATE : RATE + samples]
    found = scorer_of(7).scores([audio[:1], audio[1:]])
    padded = np.pad(audio, (0, max(0, WINDOW - samples)))
    expected = literal_scores(acoustic_model, padded)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


def test_memory_is_that_of_a_piece(scorer_of):
    scorer = scorer_of(7)
    lengths = {
        len(piece)
        for piece, _, _ in scorer.pieces(np.zeros(5000, np.int16) for _ in range(50))
    }
    assert lengths == {(7 + 2 * CONTEXT - 1) * HOP + WINDOW}


def test_keywords_are_found_where_they_are_said(scorer_of):
    audio, spoken = said()
    heard = heard_frames(scorer_of(512), [audio], KEYWORDS)
    assert heard.times[:2] == pytest.approx([0.015, 0.025])
    assert heard.hours == pytest.approx(12 / 3600, rel=1e-2)
    rule = counting.Rule(10, 0, 1000, 60)
    curve = det_curve.curves(heard, spoken, rule)[""]
    best = curve.at(0.0)
    assert (curve.misses[best], curve.false_alarms[best]) == (0, 0)
    threshold = dict.fromkeys(KEYWORDS, 0.5 * heard.scores.max())
    events = counting.events(heard, spoken, threshold, rule)
    assert [event.word for event in events] == list(spoken.words)
    assert all(event.right for event in events)
    # A keyword is at its best where it ends.
    for word, end in zip(spoken.words, spoken.ends):
        near = np.abs(heard.times - end) < 0.3
        column = np.where(near, heard.scores[:, KEYWORDS.index(word)], -np.inf)
        assert heard.times[column.argmax()] == pytest.approx(end, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_any_size_make_the_curve_of_the_same_order(seed):
    """Only the order of scores counts: ratios give the counts of probabilities."""
    rng = np.random.default_rng(seed)
    shares = rng.integers(1, 60, (400, 2)) / 60
    ratios = 300 * shares - 200
    shares[:3], ratios[:3] = 0, -np.inf
    begins = np.sort(rng.uniform(0, 38, 12))
    spoken = Spoken(begins, begins + 0.5, tuple(rng.choice(KEYWORDS[:2], 12)))
    rule = counting.Rule(100, 0, 500, 100)
    curves = [
        det_curve.curves(
            counting.Heard(KEYWORDS[:2], scores, np.arange(400) * 0.1, 1.0),
            spoken,
            rule,
        )
        for scores in (shares, ratios)
    ]
    for word in ("", *KEYWORDS[:2]):
        of_shares, of_ratios = curves[0][word], curves[1][word]
        assert np.isfinite(of_ratios.thresholds).all()
        for rate in range(40):
            assert (
                of_shares.misses[of_shares.at(rate)]
                == (of_ratios.misses[of_ratios.at(rate)])
            )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Parts and a claimed workdir of the acoustic model on a folder of tones."""
    folder = tmp_path_factory.mktemp("frames")
    write_words(folder / "words")
    tones = tiny_config(folder / "words", folder / "cache")
    config = config_file.get_config("none,acoustic_dnn,cpu").unlock()
    config.network.update(states=STATES, context=CONTEXT)
    config.data, config.detection = tones.data, tones.detection
    # So many words need not be parted by more than their clips.
    config.detection.update(keywords_per_hour=400.0, tolerance_ms=150.0)
    parts = build_parts(config, Console(quiet=True))
    experiment.claim_workdir(parts, folder / "work")
    (folder / "work" / "results.json").write_text("[]")
    return parts, folder / "work"


@pytest.fixture
def workdir(made, scorer_of, tmp_path, monkeypatch):
    network = ToneNetwork()
    network.stream = scorer_of(512)
    monkeypatch.setattr(dispatch, "finished_network", lambda *_: network)
    shutil.copytree(made[1], tmp_path / "work")
    return tmp_path / "work"


def test_detection_has_the_rows_of_every_network(made, workdir):
    rows = detection.measure(made[0], workdir, Console(quiet=True))
    found = {(r["split"], r["condition"], r["metric"]): r for r in rows}
    assert len(found) == len(rows)
    assert all(detection.is_row(row) for row in rows)
    for metric in ("frr@1fa/h", "frr@10fa/h", "frr@10fa/h/up", "frr@threshold"):
        assert found["test", "clean", metric]["value"] == 0
    assert ("test", "seen 10 dB", "frr@10fa/h") in found
    kept = json.loads((workdir / "detection.json").read_text())
    assert kept["scores"] == "frames"
    assert kept["rule"]["hop_ms"] == 10
    assert kept["rule"]["smoothing_ms"] == 0
    assert kept["rule"]["refractory_ms"] == made[0].config.detection.refractory_ms
    assert np.isfinite(list(kept["thresholds"].values())).all()
    write_report(workdir)
    page = (workdir / "report.html").read_text()
    assert "score of a keyword at each frame" in page
    assert "95 % interval" in page[page.index('id="detection"') :]


def test_a_recording_is_heard_at_the_stored_threshold_or_at_any_number(
    made, workdir, tmp_path
):
    audio, spoken = said()
    path = str(tmp_path / "long.wav")
    soundfile.write(path, audio, RATE)
    detection.measure(made[0], workdir, Console(quiet=True))
    for threshold in ("common", "3.5"):
        heard = list(detect.listen(made[0].config, workdir, path, "", threshold))
        # The threshold of a network without errors is low, and may report twice.
        words = {h["keyword"] for h in heard}
        assert words == set(spoken.words)
        for word, begin, end in zip(spoken.words, spoken.begins, spoken.ends):
            times = [h["time"] for h in heard if h["keyword"] == word]
            assert any(begin < time < end + 0.2 for time in times)
    with pytest.raises(UserError, match="--threshold=high: give 'common', 'each'"):
        list(detect.listen(made[0].config, workdir, path, "", "high"))


def test_the_config_says_whether_windows_or_frames_are_scored(made, scorer_of):
    parts, _ = made
    config = parts.config.copy_and_resolve_references()
    setup = SimpleNamespace(config=config)
    able, unable = SimpleNamespace(stream=scorer_of(512)), ToneNetwork()
    assert listeners.scores_of(setup, able) == "frames"
    assert listeners.scores_of(setup, unable) == "windows"
    config.detection.scores = "windows"
    assert listeners.scores_of(setup, able) == "windows"
    assert listeners.rule_of(setup, able, "windows").smoothing_ms == 300
    config.detection.scores = "frames"
    with pytest.raises(UserError, match="gives no scores frame by frame"):
        listeners.scores_of(setup, unable)
    config.network.name = "tc_resnet8"
    with pytest.raises(UserError, match=r"network 'tc_resnet8'.*acoustic_dnn does"):
        listeners.check(setup)
    config.detection.scores = "frame"
    with pytest.raises(UserError, match="did you mean 'frames'"):
        listeners.check(setup)
    del config.detection.scores
    assert listeners.scores_of(setup, unable) == "windows"


def test_a_network_of_clips_has_no_scorer(acoustic_model):
    model = TCResNet(num_labels=5, depth=8)
    assert create_frame_scorer(model, {}, acoustic_model.frontend) is None


def test_the_acoustic_model_takes_no_other_front_end(made):
    config = made[0].config.copy_and_resolve_references()
    setup = SimpleNamespace(config=config, labels=LABELS)
    acoustic.check(setup)
    config.frontend.name = "sinc"
    with pytest.raises(UserError, match=r"config\.frontend\.name to 'mfcc'"):
        acoustic.check(setup)
