"""Embeddings as they are kept, measured and drawn."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_report import LABELS as WORDS
from test_report import Page, make_workdir
from tiny_parts import LABELS, bank, tiny_config, tiny_parts

from kws_jax.condition_names import SEEN, UNSEEN
from kws_jax.errors import UserError
from kws_jax.evaluation import separation
from kws_jax.frontends.registry import create_frontend
from kws_jax.models.registry import create_model
from kws_jax.report import embedding_plot
from kws_jax.report.page import write_report
from kws_jax.stages import embeddings, networks


def literal_ratio(embeddings, labels):
    e = [x / np.sqrt((x * x).sum()) for x in embeddings]
    of = {c: [x for x, y in zip(e, labels) if y == c] for c in sorted(set(labels))}
    mean = {c: sum(of[c]) / len(of[c]) for c in of}
    between = [np.linalg.norm(mean[c] - mean[d]) for c in of for d in of if c < d]
    within = [np.mean([np.linalg.norm(x - mean[c]) for x in of[c]]) for c in of]
    return np.mean(between) / np.mean(within)


def test_ratio_is_the_formula_and_does_not_depend_on_lengths():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 3, 7], (3, 9, 4, 5))
    e = rng.normal(size=(len(labels), 6)) + labels[:, None] * rng.normal(size=6)
    ratio = separation.class_distance_ratio(e, labels)
    assert ratio == pytest.approx(literal_ratio(e, labels.tolist()), rel=1e-12)
    longer = e * rng.uniform(0.1, 10, (len(e), 1))
    assert separation.class_distance_ratio(longer, labels) == pytest.approx(ratio)


def test_ratio_at_its_ends():
    points = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert separation.class_distance_ratio(points, [0, 0, 1, 1]) == np.inf
    assert separation.class_distance_ratio(points, [0, 1, 0, 1]) == 0
    assert separation.class_distance_ratio(np.zeros((4, 2)), [0, 1, 0, 1]) == 0
    with pytest.raises(ValueError, match="two classes"):
        separation.class_distance_ratio(points, [1, 1, 1, 1])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Parts, rows and arrays of test clips in the order of their split."""
    config = tiny_config()
    config.evaluation.update(snr_db=(20.0, -2.0, 5.0), embeddings=True)
    parts = dataclasses.replace(tiny_parts(config), noise={SEEN: bank(1)})
    parts = dataclasses.replace(parts, noise={SEEN: bank(1), UNSEEN: bank(2)})
    # Twice the mean over time.
    network = networks.Network(
        None, None, LABELS, None, lambda audio: 2 * parts.features(audio).mean(1)
    )
    folder = tmp_path_factory.mktemp("kept")
    rows = embeddings.measure(parts, network, folder)
    assert embeddings.measure(parts, network, None) == rows
    with np.load(folder / embeddings.FILE) as arrays:
        return parts, rows, dict(arrays)


def test_embeddings_of_all_test_clips_are_kept(kept):
    parts, _, arrays = kept
    assert arrays.keys() == {"embedding", "embedding unseen -2 dB", "label", "name"}
    split = parts.task.test
    np.testing.assert_array_equal(arrays["name"], split.names)
    np.testing.assert_array_equal(arrays["label"], split.labels)
    audio = split.read(np.arange(len(split)))
    expected = 2 * np.asarray(jax.jit(create_frontend("mfcc"))(audio)).mean(1)
    assert arrays["embedding"].dtype == np.float32
    np.testing.assert_allclose(arrays["embedding"], expected, rtol=1e-4, atol=1e-4)
    assert arrays["embedding unseen -2 dB"].shape == expected.shape
    assert not np.allclose(arrays["embedding unseen -2 dB"], expected, rtol=0.1)


def test_rows_tell_the_ratio_clean_and_in_noise(kept):
    _, rows, arrays = kept
    found = {row["condition"]: row["value"] for row in rows}
    for condition, name in (
        ("clean", "embedding"),
        ("unseen -2 dB", "embedding unseen -2 dB"),
    ):
        expected = literal_ratio(np.float64(arrays[name]), arrays["label"].tolist())
        assert found[condition] == pytest.approx(expected, rel=1e-6)
    assert {row["metric"] for row in rows} == {"class_distance_ratio"}


def test_only_a_field_or_a_stage_asks_for_embeddings():
    config = tiny_config()
    assert not embeddings.asked_for(config)
    config.stages[0].kind = "embed"
    assert embeddings.asked_for(config)
    config.stages[0].kind = "train"
    config.evaluation.embeddings = True
    assert embeddings.asked_for(config)


def test_networks_without_embeddings_are_refused_where_they_are_asked_for():
    config = tiny_config()
    config.network = {"name": "acoustic_dnn"}
    acoustic = create_model("acoustic_dnn", len(LABELS))
    embeddings.check(config, acoustic)
    config.evaluation.embeddings = True
    embeddings.check(config, create_model("tc_resnet8", len(LABELS)))
    with pytest.raises(UserError, match="'acoustic_dnn' makes no embeddings: set"):
        embeddings.check(config, acoustic)


def test_directions_are_those_of_the_covariance():
    points = np.random.default_rng(0).normal(size=(50, 5)) * [1, 9, 2, 5, 1]
    mean, directions, shares = embedding_plot.principal_directions(points)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    np.testing.assert_allclose(mean, points.mean(0))
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum())
    np.testing.assert_allclose(
        np.abs(directions @ vectors[:, [-1, -2]]), np.eye(2), atol=1e-9
    )


def drawn_workdir(folder, clips=900, seed=0):
    """A made-up run whose words are islands, nearer to each other in noise."""
    workdir, rng = make_workdir(folder), np.random.default_rng(seed)
    label = rng.integers(0, len(WORDS), clips).astype(np.int32)
    centres = rng.normal(size=(len(WORDS), 45))
    arrays = {"label": label, "name": np.array([f"clip{i}" for i in range(clips)])}
    for name, spread in (("embedding", 0.3), ("embedding unseen 0 dB", 1.5)):
        noise = spread * rng.normal(size=(clips, 45))
        arrays[name] = np.float32(centres[label] + noise)
    np.savez_compressed(workdir / embeddings.FILE, **arrays)
    path = workdir / "results.json"
    rows = json.loads(path.read_text())
    for condition, value in (("clean", 4.561), ("unseen 0 dB", 0.934)):
        new = {"condition": condition, "metric": "class_distance_ratio"}
        rows.append(rows[0] | new | {"value": value, "ci95": None})
    path.write_text(json.dumps(rows))
    return workdir


def test_page_draws_a_map_for_each_condition(tmp_path):
    source = write_report(drawn_workdir(tmp_path)).read_text()
    page = Page(source)
    assert "embeddings" in page.ids()
    assert "clean : distance between words 4.56 times that within" in page.text
    assert "unseen 0 dB : distance between words 0.93 times that within" in page.text
    maps = [label for label in page.having("aria-label") if "Embeddings" in label]
    assert maps == [
        "Embeddings of the test clips, clean",
        "Embeddings of the test clips, unseen 0 dB",
    ]
    clouds = [a["d"] for tag, a in page.elements if tag == "path" and "h0" in a["d"]]
    assert len(clouds) == 2 * len(WORDS)
    assert all(d.count("h0") == 60 for d in clouds)
    assert "yes: " in source


def test_page_has_no_map_without_embeddings_and_names_a_damaged_file(tmp_path):
    workdir = drawn_workdir(tmp_path)
    (workdir / embeddings.FILE).write_bytes(b"PK half a file")
    with pytest.raises(UserError, match=r"embeddings\.npz cannot be read"):
        write_report(workdir)
    (workdir / embeddings.FILE).unlink()
    assert "embeddings" not in Page(write_report(workdir).read_text()).ids()


def test_words_have_colours_of_their_own_and_others_are_grey():
    colours = [embedding_plot.colour(WORDS, i) for i in range(len(WORDS))]
    assert len(set(colours[:10])) == 10
    assert colours[10:] == ["var(--grey)"] * 2
