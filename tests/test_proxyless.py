"""ProxylessNAS: costs, limits, gates, and who is updated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common, end_to_end_nas
from kws_jax.errors import UserError
from kws_jax.models.counting import count_macs, count_parameters
from kws_jax.models.mbconv import (
    SKIP,
    MBConv,
    layers_to_json,
    load_layers,
    parse_operation,
)
from kws_jax.models.registry import create_model
from kws_jax.search import limits, proxyless
from kws_jax.search.architecture import init_architecture
from kws_jax.search.limits import Limits
from kws_jax.search.mbconv_space import Cost, MBConvSpace, expected_macs
from kws_jax.training import finiteness
from kws_jax.training.optimizers import create_optimizer, create_schedule
from kws_jax.training.state import ARCHITECTURE, WEIGHTS, create_train_state

TINY = MBConvSpace((1, 2), (3, 5))
RNG = np.random.default_rng(0)


def traced_cost(name, inputs, channels, stride, size):
    block = MBConv(channels, *parse_operation(name), stride)
    x = jax.ShapeDtypeStruct((1, *size, inputs), np.float32)
    shapes = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, train=False), x)
    macs = count_macs(lambda v, x: block.apply(v, x, train=False), shapes, x)
    return macs, count_parameters(shapes["params"])


@pytest.mark.parametrize("round_widths", [False, True])
def test_costs_are_those_of_the_traced_program(round_widths):
    space = MBConvSpace(round_widths=round_widths)
    costs = space.costs((60, 98))
    inputs = (16, 24, 24, 24, 40, 40) if round_widths else (10, 20, 20, 20, 40, 40)
    outputs = (24,) * 3 + (40,) * 3 if round_widths else (20,) * 3 + (40,) * 3
    sizes = [(30, 49), (15, 25), (15, 25), (15, 25), (8, 13), (8, 13)]
    assert [len(names) for names in space.candidates] == [18, 19, 19, 18, 19, 19]
    # layers 2 and 5 are as their successors
    for index in (0, 1, 3, 4):
        for at, name in enumerate(space.candidates[index]):
            found = costs[index].macs[at], costs[index].parameters[at]
            if name == SKIP:
                assert found == (0, 0)
            # without expanding, and at both ends of those with, to save time
            elif name in ("E1K5", "E2K3", "E6K7"):
                stride = 2 if index % 3 == 0 else 1
                expected = traced_cost(
                    name, inputs[index], outputs[index], stride, sizes[index]
                )
                assert found == expected
    np.testing.assert_array_equal(costs[1].macs, costs[2].macs)


def test_expected_operations_and_objective_are_the_formulas():
    costs = TINY.costs((8, 10))
    alphas = [RNG.normal(size=len(cost.macs)) for cost in costs]
    p = [np.exp(a) / np.exp(a).sum() for a in alphas]
    expected = 1000 + sum(np.dot(q, cost.macs) for q, cost in zip(p, costs))
    architecture = tuple(jnp.float32(a) for a in alphas)
    np.testing.assert_allclose(
        expected_macs(architecture, costs, 1000), expected, rtol=1e-5
    )
    objective = proxyless.Objective(costs, 1000, 20e6, 0.7, 2.0)
    loss = 2 * 1.3 * (np.log(expected) / np.log(20e6)) ** 0.7
    got = objective(jnp.float32(1.3), architecture)
    np.testing.assert_allclose(got, loss, rtol=1e-5)


def test_gradient_through_gates_is_that_of_equation_4():
    alphas = jnp.float32(RNG.normal(size=5))
    by_gate = RNG.normal(size=5)

    def loss(alphas):
        (gate,) = proxyless.binary_gates((alphas,), jnp.array([3]))
        return jnp.dot(gate, jnp.float32(by_gate))

    np.testing.assert_allclose(loss(alphas), by_gate[3], rtol=1e-5)
    p = np.exp(alphas) / np.exp(alphas).sum()
    expected = [
        sum(by_gate[j] * p[j] * ((i == j) - p[i]) for j in range(5)) for i in range(5)
    ]
    np.testing.assert_allclose(jax.grad(loss)(alphas), expected, rtol=1e-4, atol=1e-6)


def test_paths_are_drawn_with_the_probabilities_of_the_architecture():
    architecture = (jnp.log(jnp.array([0.2, 0.8])), jnp.log(jnp.array([0.5, 0.1, 0.4])))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: proxyless.sample_path(key, architecture))(keys)
    for column, p in zip(drawn.T, ([0.2, 0.8], [0.5, 0.1, 0.4])):
        np.testing.assert_allclose(np.bincount(column) / 4000, p, atol=0.03)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05
    assert proxyless.likeliest_path(architecture).tolist() == [1, 0]


def small_costs():
    sizes = (3, 2, 4, 3)
    return tuple(Cost(RNG.integers(0, 50, n), RNG.integers(0, 50, n)) for n in sizes)


@pytest.mark.parametrize("seed", range(5))
def test_most_probable_network_within_limits_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    costs = small_costs()
    logs = [np.log(rng.dirichlet(np.ones(len(c.macs)))) for c in costs]
    for max_macs, max_parameters, least in [
        *((0, 0, 0), (130, 0, 0), (0, 90, 0), (120, 110, 0), (14, 14, 0)),
        *((0, 0, 100), (130, 100, 80), (0, 80, 81)),
    ]:
        bounds = Limits(max_macs, max_parameters, 10, 5, least)
        best, found = -np.inf, None
        for choice in itertools.product(*(range(len(c.macs)) for c in costs)):
            macs = 10 + sum(c.macs[i] for c, i in zip(costs, choice))
            parameters = 5 + sum(c.parameters[i] for c, i in zip(costs, choice))
            fits = (not max_macs or macs <= max_macs) and (
                least <= parameters <= (max_parameters or np.inf)
            )
            score = sum(log[i] for log, i in zip(logs, choice))
            if fits and score > best:
                best, found = score, choice
        got = limits.most_probable(logs, costs, bounds)
        assert (got is None) == (found is None)
        if found is not None:
            assert sum(log[i] for log, i in zip(logs, got)) == pytest.approx(best)
            assert got == found


def test_random_networks_are_uniform_over_those_within_the_limits():
    costs, bounds = small_costs(), Limits(110, 110, min_parameters=60)
    fitting = {
        choice
        for choice in itertools.product(*(range(len(c.macs)) for c in costs))
        if sum(c.macs[i] for c, i in zip(costs, choice)) <= 110
        and 60 <= sum(c.parameters[i] for c, i in zip(costs, choice)) <= 110
    }
    rng = np.random.default_rng(1)
    drawn = [limits.draw(costs, bounds, rng) for _ in range(40 * len(fitting))]
    counts = [drawn.count(choice) for choice in fitting]
    assert sum(counts) == len(drawn)
    assert len(fitting) > 3
    # deviation √40 ≈ 6
    assert min(counts) > 12
    assert max(counts) < 75
    assert limits.draw(costs, Limits(1, 1, 5, 5), rng) is None


def test_whole_space_is_searched_in_a_moment():
    space = MBConvSpace()
    costs = space.costs((60, 98))
    logs = [np.log(RNG.dirichlet(np.ones(len(c.macs)))) for c in costs]
    bounds = Limits(6_000_000, 40_000, 400_000, 5_000)
    choice = limits.most_probable(logs, costs, bounds)
    assert 5_000 + sum(c.parameters[i] for c, i in zip(costs, choice)) <= 40_000
    # every exchange of one layer's operation is less probable or too large
    for layer, cost in enumerate(costs):
        for other in range(len(cost.macs)):
            changed = (*choice[:layer], other, *choice[layer + 1 :])
            macs = 400_000 + sum(c.macs[i] for c, i in zip(costs, changed))
            parameters = 5_000 + sum(c.parameters[i] for c, i in zip(costs, changed))
            if macs <= 6_000_000 and parameters <= 40_000:
                assert logs[layer][other] <= logs[layer][choice[layer]]


def test_entropy_is_relative_to_an_even_choice():
    even, sure = jnp.zeros(4), jnp.array([50.0, 0, 0])
    half = jnp.log(jnp.array([0.5, 0.5, 1e-9]))
    got = proxyless.entropies((even, sure, half))
    np.testing.assert_allclose(got, [1, 0, np.log(2) / np.log(3)], atol=1e-5)


def test_rate_of_the_architecture_rises_from_nothing_to_the_rate():
    settings = common.tc_resnet_sgd().to_dict() | {
        "schedule": "rising_cosine",
        "learning_rate": 4e-3,
    }
    schedule = create_schedule(settings, 40, steps_per_epoch=1.0)
    got = [float(schedule(step)) for step in range(41)]
    t = np.arange(41) / 40
    np.testing.assert_allclose(got, 4e-3 * (1 + np.cos(np.pi * (1 + t / 2))), atol=1e-8)
    assert got[0] == pytest.approx(0, abs=1e-9)
    assert got[-1] == pytest.approx(4e-3)


def test_layers_are_read_as_names_and_from_a_found_network(tmp_path):
    layers = ("E6K7", SKIP, "E1K3", "E2K5", SKIP, SKIP)
    load = functools.partial(load_layers, round_widths=False)
    assert load("E6K7, SKIP,E1K3,E2K5,SKIP,SKIP") == layers
    file = tmp_path / "genotype.json"
    file.write_text(layers_to_json(layers, round_widths=False))
    assert create_model("mbconv", 12, layers=str(file)).layers == layers
    for wrong in ("E6K7,SKIP", "nowhere.json", "SKIP" + ",E1K3" * 5):
        with pytest.raises(UserError, match=r"network\.layers"):
            load(wrong)
    with pytest.raises(UserError, match=r"Set that to False"):
        create_model("mbconv", 12, layers=str(file), round_widths=True)
    file.write_text('{"layers": 3}')
    with pytest.raises(UserError, match="names no file of a found network"):
        load(str(file))


def test_space_refuses_what_the_network_does_not_have():
    with pytest.raises(UserError, match=r"search.expansions = \(7,\)"):
        MBConvSpace(expansions=(7,))
    with pytest.raises(UserError, match=r"search.kernels = \(\)"):
        MBConvSpace(kernels=())


# One layer of a made-up network with candidates of scalar and vector weights.
GROUPS = 3  # of expansions 1 and 2


def made_up_trees():
    def layer():
        return {
            f"K{k}": {
                "groups": {
                    "depthwise": jnp.ones((GROUPS, 2, 2)),
                    "norm": {"scale": jnp.ones(GROUPS * 4)},
                },
                "norms": {"bias": jnp.ones(2 * 5)},
            }
            for k in (3, 5)
        }

    params = {"encoder": {f"layers_{i}": layer() for i in range(6)}}
    params["encoder"]["stem"] = jnp.ones(3)
    return params


def test_what_a_path_uses_follows_its_operations():
    layers = ("E2K5", SKIP, "E1K3", "E1K5", SKIP, "E2K3")
    path = jnp.array([c.index(n) for c, n in zip(TINY.candidates, layers)])
    used = proxyless.used_weights(made_up_trees(), TINY, path)["encoder"]
    assert bool(used["stem"])
    for index, name in enumerate(layers):
        for k in (3, 5):
            got = used[f"layers_{index}"][f"K{k}"]
            groups = np.zeros(GROUPS, bool)
            norms = np.zeros(2, bool)
            if name.endswith(f"K{k}"):
                groups[0 if name[1] == "1" else slice(1, 3)] = True
                norms[0 if name[1] == "1" else 1] = True
            expected = np.broadcast_to(groups[:, None, None], (GROUPS, 2, 2))
            np.testing.assert_array_equal(got["groups"]["depthwise"], expected)
            np.testing.assert_array_equal(
                got["groups"]["norm"]["scale"], np.repeat(groups, 4)
            )
            np.testing.assert_array_equal(got["norms"]["bias"], np.repeat(norms, 5))


def test_unused_weights_keep_value_and_momentum():
    settings = common.tc_resnet_sgd().to_dict() | {
        "learning_rate": 0.1,
        "schedule": "constant",
        "nesterov": True,
        "weight_decay": 0.01,
        "clip_norm": 100.0,
    }
    tx, _ = create_optimizer(settings, 10, steps_per_epoch=1.0)
    tree = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    state = tx.init(tree)
    w, momentum = np.ones((2, 3)), np.zeros((2, 3))
    for step in range(4):
        used = {"a": jnp.array([[step % 2 == 0], [True]]), "b": jnp.array(True)}
        gradient = jax.tree.map(lambda leaf: 0.3 * leaf, tree)
        gradient["a"] = jnp.where(used["a"], gradient["a"], 0)
        tree, state = proxyless.masked_update(tx, gradient, state, tree, used)
        # SGD with Nesterov's momentum by hand, rows that are not used left alone
        for row in range(2):
            if row or step % 2 == 0:
                g = 0.3 * w[row] + 0.01 * w[row]
                momentum[row] = 0.9 * momentum[row] + g
                w[row] = w[row] - 0.1 * (g + 0.9 * momentum[row])
        np.testing.assert_allclose(tree["a"], w, rtol=1e-5)


def step_of(every, start=0, architecture=None, factor=1.0):
    """A step on a loss that is linear in weights and, by a factor, in gates."""

    def loss(trees, stats, batch, key, path, gates):
        value = jnp.sum(trees[WEIGHTS]["w"] * batch)
        if gates is not None:
            by_gates = sum(jnp.sum(g * jnp.arange(len(g))) for g in gates)
            value = value + factor * by_gates
        return value, ({"loss": value}, stats)

    transformations = {WEIGHTS: optax.sgd(0.1), ARCHITECTURE: optax.sgd(1.0)}
    objective = proxyless.Objective(TINY.costs((8, 10)), 1000, 20e6, 0.0)
    step = proxyless.make_path_step(
        loss, loss, transformations, TINY, objective, every=every, start=start
    )
    architecture = architecture or init_architecture(jax.random.key(0), TINY.candidates)
    trees = {WEIGHTS: {"w": jnp.zeros(2)}, ARCHITECTURE: architecture}
    return jax.jit(step), create_train_state(trees, {}, transformations)


def test_architecture_moves_at_every_nth_step_after_its_start():
    step, state = step_of(every=3, start=4)
    moved = []
    for _ in range(9):
        before = state.trees[ARCHITECTURE][0]
        state, metrics = step(state, jnp.ones(2), jnp.ones(2), jax.random.key(1))
        moved.append(bool(jnp.any(state.trees[ARCHITECTURE][0] != before)))
    assert moved == [False] * 5 + [True, False, False, True]
    np.testing.assert_allclose(state.trees[WEIGHTS]["w"], -0.9, rtol=1e-5)
    assert int(state.step) == 9
    assert metrics["expected_macs"] > 1000


@pytest.mark.parametrize(
    ("weights", "alphas", "leaf"),
    [
        (1.0, np.nan, "architecture/0"),
        (np.inf, 1.0, "weights/w"),
        (1.0, 1.0, ""),
    ],
)
def test_gradients_of_the_architecture_are_watched(weights, alphas, leaf):
    with finiteness.observing():
        step, state = step_of(every=2, factor=alphas)
        batch = jnp.full(2, weights)
        state, metrics = step(state, jnp.ones(2), jnp.ones(2), jax.random.key(1))
        assert metrics["architecture_gradient_norm"] == 0
        assert finiteness.is_finite(metrics)
        before = state.trees[ARCHITECTURE]
        _, metrics = step(state, batch, jnp.ones(2), jax.random.key(1))
    assert finiteness.first_gradient(metrics) == leaf
    assert finiteness.is_finite(metrics) == (not leaf)
    if not leaf:
        # Eq. 4, where ∂L/∂g_j is j.
        squares = 0.0
        for alphas in before:
            p = np.exp(np.float64(alphas)) / np.exp(np.float64(alphas)).sum()
            places = np.arange(len(p))
            squares += ((p * (places - (p * places).sum())) ** 2).sum()
        norm = pytest.approx(np.sqrt(squares), rel=1e-4)
        assert metrics["architecture_gradient_norm"] == norm


def test_warm_up_leaves_the_architecture_alone_and_takes_one_batch():
    step, state = step_of(every=0)
    after, _ = step(state, jnp.ones(2), jax.random.key(1))
    jax.tree.map(
        np.testing.assert_array_equal,
        after.trees[ARCHITECTURE],
        state.trees[ARCHITECTURE],
    )


def test_layers_that_are_skipped_do_not_move():
    sure = [jnp.zeros(len(names)) for names in TINY.candidates]
    sure[1] = sure[1].at[-1].set(50.0)  # SKIP
    step, state = step_of(every=1, architecture=tuple(sure))
    after, _ = step(state, jnp.ones(2), jnp.ones(2), jax.random.key(1))
    alphas = after.trees[ARCHITECTURE]
    np.testing.assert_array_equal(alphas[1], sure[1])
    # by hand for another layer, whose gates have the gradients 0, 1, 2, 3
    p, by_gate = np.full(4, 0.25), np.arange(4)
    expected = -(p * by_gate - p * np.dot(p, by_gate))
    np.testing.assert_allclose(alphas[0], expected, atol=1e-5)


@pytest.mark.parametrize("words", ["sinc40,random", "mfcc10,proxyless"])
def test_sizes_of_front_ends_are_read_from_their_names(words):
    config = end_to_end_nas.get_config(words)
    frontend = config.frontend
    size = frontend.get("num_filters") or frontend.num_coefficients
    assert f"{frontend.name}{size}" == words.split(",")[0]
    assert config.search.method == words.split(",")[1]
