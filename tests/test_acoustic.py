"""The acoustic model: paths and scores against all paths, its training, its errors."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import data_parameters as config_file
from kws_jax.data.corpus import SILENCE, UNKNOWN, Split
from kws_jax.errors import UserError
from kws_jax.models.acoustic_dnn import AcousticDNN, splice, state_names
from kws_jax.models.registry import create_model
from kws_jax.ops import hmm
from kws_jax.stages import acoustic
from kws_jax.stages.data_parameters import StageTable
from kws_jax.training.state import DATA_PARAMETERS, WEIGHTS, create_train_state
from kws_jax.training.step import make_train_step

W, N, T = 2, 3, 6
STATES = W * N + 2
BACKGROUND, SILENT = W * N, W * N + 1
LABELS = ("up", "down", UNKNOWN, SILENCE)


def likelihoods(seed, frames=T, batch=2):
    return np.random.default_rng(seed).normal(0, 2, (batch, frames, STATES))


def ways(frames, length):
    """All ways through a chain, place by place."""
    for start in (0, 1):
        for moves in itertools.product((0, 1), repeat=frames - 1):
            way = np.concatenate([[start], start + np.cumsum(moves)])
            if length - 2 <= way[-1] < length:
                yield way


def test_states_and_chains_are_numbered_word_by_word():
    assert hmm.num_states(W, N) == STATES
    np.testing.assert_array_equal(
        hmm.chains(W, N),
        [[7, 0, 1, 2, 7], [7, 3, 4, 5, 7], [7, 6, 6, 6, 7], [7] * 5],
    )
    names = state_names(LABELS, N)
    assert names[3] == "down/1"
    assert (names[BACKGROUND], names[SILENT]) == (UNKNOWN, SILENCE)


@pytest.mark.parametrize("frames", [N, T])
def test_the_best_path_is_the_best_of_all(frames):
    chain = hmm.chains(W, N)[1]
    emissions = likelihoods(0, frames)[..., chain]
    places, sums = hmm.best_path(jnp.asarray(emissions, jnp.float32))
    for e, found, total in zip(emissions, np.asarray(places), sums):
        worth = {tuple(way): e[np.arange(frames), way].sum() for way in ways(frames, 5)}
        best = max(worth, key=worth.get)
        assert float(total) == pytest.approx(worth[best], rel=1e-5)
        assert tuple(found) == best


def test_too_few_frames_are_told():
    with pytest.raises(UserError, match="2 frames are too few for words of 3 states"):
        hmm.best_path(jnp.zeros((1, 2, 5)))


def ratio(frames, word):
    """The best keyword path that ends with these frames, by all paths."""
    filler = frames[:, BACKGROUND:].max(1)
    best = -np.inf
    count = len(frames)
    for begin in range(count - N + 1):
        for cuts in itertools.combinations(range(begin + 1, count), N - 1):
            edges = [begin, *cuts, count]
            total = filler[:begin].sum()
            for state in range(N):
                part = slice(edges[state], edges[state + 1])
                total += frames[part, word * N + state].sum()
            best = max(best, total - filler.sum())
    return best


def test_keyword_scores_are_ratios_of_the_best_paths_also_in_pieces():
    given = likelihoods(1, 7)
    expected = [
        [[ratio(x[: t + 1], w) for w in range(W)] for t in range(7)] for x in given
    ]
    carried = hmm.start_scores(2, W, N)
    _, whole = hmm.keyword_scores(carried, jnp.asarray(given, jnp.float32))
    assert np.isneginf(np.asarray(whole)[:, : N - 1]).all()
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-4)
    pieces = []
    for piece in (given[:, :1], given[:, 1:5], given[:, 5:]):
        carried, scores = hmm.keyword_scores(carried, jnp.asarray(piece, jnp.float32))
        pieces.append(scores)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_odds_are_those_of_a_softmax_over_background_and_keywords():
    scores = np.random.default_rng(4).normal(0, 3, (5, 4))
    whole = np.exp(np.concatenate([np.zeros((5, 1)), scores], axis=1))
    p = whole[:, 1:] / whole.sum(1, keepdims=True)
    found = hmm.log_odds(jnp.asarray(scores, jnp.float32))
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-4, atol=1e-4)
    # Alone it is the ratio; what cannot have ended yet is no rival, nor any number.
    np.testing.assert_allclose(hmm.log_odds(jnp.float32([[7.0]])), [[7.0]])
    early = hmm.log_odds(jnp.float32([[-np.inf, 2.0], [-np.inf, -np.inf]]))
    np.testing.assert_allclose(early, [[-np.inf, 2.0], [-np.inf, -np.inf]], atol=1e-6)


def test_scores_of_labels_are_those_of_all_paths():
    given = likelihoods(2)
    found = hmm.label_scores(jnp.asarray(given, jnp.float32), W, N)
    chain = hmm.chains(W, N)[W]
    for frames, scores in zip(given, np.asarray(found)):
        relative = frames - frames[:, BACKGROUND:].max(1, keepdims=True)
        keywords = [
            max(ratio(frames[:end], w) for end in range(N, T + 1)) for w in range(W)
        ]
        unknown = max(
            relative[np.arange(T), chain[way]].sum() for way in ways(T, N + 2)
        )
        expected = [*keywords, unknown, relative[:, SILENT].sum()]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_a_flat_start_divides_the_loud_part_evenly():
    energy = np.full((3, 14), -10.0)
    energy[0, 4:10] = 0  # six frames, two for each state
    energy[0, 6] = -9  # a pause in the word
    energy[1, 12] = 0  # a click is made as long as the word has states
    energy[2] = np.arange(14)
    places = hmm.flat_start(jnp.asarray(energy), N)
    np.testing.assert_array_equal(
        places,
        [
            [0] * 4 + [1, 1, 2, 2, 3, 3] + [4] * 4,
            [0] * 11 + [1, 2, 3],
            [0] * 7 + [1, 1, 1, 2, 2, 3, 3],
        ],
    )


def test_frames_are_seen_with_their_neighbours():
    x = jnp.arange(8.0).reshape(1, 4, 2)
    expected = [[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]]
    expected.append([4, 5, 6, 7, 6, 7])
    np.testing.assert_array_equal(splice(x, 1)[0], expected)


@pytest.mark.parametrize(("labels", "states"), [(12, 6), (3, 18)])
def test_parameters_follow_the_formula(labels, states):
    model = create_model("acoustic_dnn", labels, states=states)
    x = jnp.zeros((2, 30, 13))
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    outputs = (labels - 2) * states + 2
    expected = 247 * 64 + 64 + 4 * (64 * 64 + 64) + 64 * outputs + outputs
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes["params"])]
    assert sum(sizes) == expected
    for method, shape in ((None, (2, labels)), ("frame_logits", (2, 30, outputs))):
        found = jax.eval_shape(
            functools.partial(model.apply, train=False, method=method), shapes, x
        )
        assert found.shape == shape


def words(clips, seed):
    """Features [b, 24, 5] of two words that differ in the order of their sounds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, clips)
    sounds = {0: [1, 2, 3], 1: [3, 2, 1], 2: [4, 4, 4]}
    x = rng.normal(0, 0.4, (clips, 24, 5))
    for i, label in enumerate(labels):
        if label < 3:
            begin = rng.integers(2, 9)
            for j, sound in enumerate(sounds[label]):
                here = slice(begin + 4 * j, begin + 4 * j + 4)
                x[i, here, sound] += 2
                x[i, here, 0] += 4  # its energy
    return np.float32(x), labels.astype(np.int32)


@pytest.fixture(scope="module")
def trained():
    """A small model after a flat start and re-alignment, with data parameters."""
    clips, size, steps = 200, 50, 120
    features, labels = words(clips, 0)
    stage = config_file.get_config("joint,acoustic_dnn").unlock().stages[0]
    # In 120 steps some clips' own values must leave the lower end of the clamp, where
    # all of them begin: how many depends on the rate of the states' values.
    stage.data_parameters.class_learning_rate = 0.1
    names = np.array([str(i) for i in range(clips)])
    parts = SimpleNamespace(
        features=lambda audio: audio,
        labels=LABELS,
        task=SimpleNamespace(train=Split("train", labels, names, names, None)),
    )
    table = StageTable(parts, stage, None, state_names(LABELS, N))
    model = AcousticDNN(4, states=N, hidden=16, depth=2, context=2)
    loss_fn = acoustic.frame_loss(
        parts, stage, model, lambda key, audio: audio, steps // 3, table=table
    )
    transformations = {
        WEIGHTS: optax.sgd(0.1, 0.9),
        DATA_PARAMETERS: table.transformation(),
    }
    step = make_train_step(loss_fn, transformations, trained=tuple(transformations))
    variables = model.init(jax.random.key(0), features[:1], train=False)
    trees = {WEIGHTS: variables["params"], **table.trees()}
    state = create_train_state(trees, variables["batch_stats"], transformations)
    rng = np.random.default_rng(1)
    order = [rng.permutation(clips) for _ in range(steps * size // clips)]
    rows = jnp.asarray(np.concatenate(order).reshape(steps, size), jnp.int32)

    def one(state, rows):
        batch = {
            "audio": jnp.asarray(features)[rows],
            "label": jnp.asarray(labels)[rows],
        }
        batch |= {"index": rows, "mask": rows >= 0, "noise_level": 0.0 * rows}
        return step(state, batch, jax.random.key(0))

    end, metrics = jax.jit(lambda state: jax.lax.scan(one, state, rows))(state)
    variables = {"params": end.trees[WEIGHTS], "batch_stats": end.batch_stats}
    return SimpleNamespace(
        model=model, variables=variables, state=end, metrics=jax.device_get(metrics)
    )


def test_training_learns_words_of_the_same_sounds_in_another_order(trained):
    features, labels = words(200, 5)
    scores = trained.model.apply(trained.variables, features, train=False)
    assert (np.argmax(scores, -1) == labels).mean() > 0.9
    assert trained.metrics["accuracy"][0] < 0.6
    assert trained.metrics["loss"][-5:].mean() < 0.5 * trained.metrics["loss"][0]
    assert np.isfinite(trained.metrics["penalty"]).all()


def test_statistics_have_the_shares_of_the_states(trained):
    statistics = trained.variables["batch_stats"]
    assert float(statistics["updates"]) == 120
    prior = np.asarray(statistics["prior"])
    assert prior.sum() == pytest.approx(1, abs=1e-5)
    # Most frames are silence; the states of a word are about as long as each other.
    assert prior[SILENT] > 0.4
    assert prior[: W * N].max() < 4 * prior[: W * N].min()


def test_the_table_has_a_row_for_each_state_and_each_clip(trained):
    table = trained.state.trees[DATA_PARAMETERS]
    assert table["class"].shape == (STATES,)
    assert table["instance"].shape == (200, 2)
    moved = np.abs(np.asarray(table["instance"]) - np.log(0.05)) > 1e-5
    # The easiest clips are back at the lowest value that the clamp allows.
    assert moved[:, 0].mean() > 0.2
    assert not moved[:, 1].any()


def test_a_keyword_in_a_stream_scores_when_it_ends(trained):
    features, labels = words(40, 7)
    up, silence = features[labels == 0][0], features[labels == 3][0]
    audio = np.concatenate([silence, up, silence])
    seen = np.pad(audio, ((2, 2), (0, 0)), mode="edge")[None]
    carried = trained.model.start_stream(1)
    _, scores = trained.model.apply(trained.variables, carried, seen, method="stream")
    scores = np.asarray(scores)[0]
    end = np.flatnonzero(up[:, 0] > 2)[-1] + 24
    assert abs(int(scores[:, 0].argmax()) - end) <= 2
    assert scores[:, 0].max() > max(0, scores[N:, 1].max())
    assert scores[N:24, 0].max() < 0


def test_what_the_model_does_not_fit_is_told():
    config = config_file.get_config("acoustic_dnn").unlock()
    setup = SimpleNamespace(config=config, labels=LABELS)
    acoustic.check(setup)
    with pytest.raises(UserError, match="needs keywords, _unknown_ and _silence_"):
        acoustic.check(SimpleNamespace(config=config, labels=("up", "down", SILENCE)))
    config.front_filter.name = "dynamic"
    with pytest.raises(UserError, match=r"front_filter\.name to 'none'"):
        acoustic.check(setup)
    config.front_filter.name = "none"
    config.stages[0].kind = "quantize"
    with pytest.raises(UserError, match=r"kind 'quantize'.*'train' alone"):
        acoustic.check(setup)
    config.stages[0].kind = "train"
    config.stages[0].objective = "binary_cross_entropy"
    with pytest.raises(UserError, match=r"\[0\]\.objective = 'binary.*'cross_entropy'"):
        acoustic.check(setup)
    config.stages[0].objective = "cross_entropy"
    config.stages[0].mixup.probability = 0.5
    with pytest.raises(UserError, match=r"\[0\]\.mixup\.probability = 0\.5.*it to 0"):
        acoustic.check(setup)
    config.stages[0].mixup.probability = 0.0
    config.stages[0].alignment.flat_fraction = 1.5
    with pytest.raises(UserError, match=r"alignment\.flat_fraction = 1\.5"):
        acoustic.check(setup)
    del config.stages[0].alignment
    with pytest.raises(UserError, match=r"stages\[0\]\.alignment; start from a config"):
        acoustic.check(setup)
    config.network.name = "tc_resnet8"
    acoustic.check(setup)
    with pytest.raises(UserError, match=r"'states'.*at least 1"):
        create_model("acoustic_dnn", 12, states=0)
