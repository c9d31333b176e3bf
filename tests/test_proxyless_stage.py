"""The stage of ProxylessNAS on random clips: from its checks to the found network."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK
from tiny_parts import LABELS, tiny_parts

from configs import end_to_end_nas
from kws_jax.errors import UserError
from kws_jax.frontends.registry import create_frontend
from kws_jax.models.counting import count_macs, count_parameters
from kws_jax.models.mbconv import load_layers
from kws_jax.stages import dispatch, networks, proxyless, proxyless_space, runner
from kws_jax.training import loop
from kws_jax.training.state import ARCHITECTURE, WEIGHTS


def nas_parts(words="mfcc10", **search):
    config = end_to_end_nas.get_config(words).unlock()
    config.evaluation.batch_size = 16
    config.search.update({"expansions": (2, 3), "kernels": (3,)} | search)
    for stage in config.stages[:-1]:
        if stage.kind == "proxyless_search":
            # half an epoch of the 23 clips without the architecture
            stage.update(epochs=0.0, steps=4, batch_size=8, warmup_epochs=0.5)
            if stage.architecture_every:
                stage.architecture_every = 2
    parts = tiny_parts(config)
    settings = {k: v for k, v in config.frontend.items() if k != "name"}
    frontend = create_frontend(config.frontend.name, **settings)
    return type(parts)(**(vars(parts) | {"frontend": frontend}))


@pytest.mark.parametrize(
    "search",
    [{}, pytest.param({"nested": True, "kernels": (5, 3)}, marks=pytest.mark.slow)],
    ids=["apart", "nested"],
)
def test_search_from_warm_up_to_the_network_within_its_limits(tmp_path, search):
    parts = nas_parts(max_parameters=16_000, **search)
    dispatch.check(parts, tmp_path)
    states = []
    run_stage = runner.run_stage

    def watched(parts, index, folder, state, **more):
        began = jax.device_get(state)
        state, notes = run_stage(parts, index, folder, state, **more)
        states.append((began, jax.device_get(state)))
        return state, notes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_stage", watched)
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
        for index in (0, 1):
            dispatch.run(parts, index, tmp_path)
    (fresh, warm), (taken_up, found) = states
    same = np.testing.assert_array_equal
    jax.tree.map(same, fresh.trees[ARCHITECTURE], warm.trees[ARCHITECTURE])
    for label in (WEIGHTS, ARCHITECTURE):
        jax.tree.map(same, taken_up.trees[label], warm.trees[label])
    jax.tree.map(same, taken_up.batch_stats, warm.batch_stats)
    assert int(taken_up.step) == 0
    moved = [
        np.any(a != b)
        for a, b in zip(found.trees[ARCHITECTURE], warm.trees[ARCHITECTURE])
    ]
    # the first and the fourth layer cannot be skipped, so they have moved
    assert moved[0]
    assert moved[3]

    path = str(tmp_path / networks.GENOTYPE_FILE)
    layers = load_layers(path, round_widths=False)
    model = networks.create_network(parts, tmp_path)
    assert model.layers == layers
    shapes = networks.variable_shapes(model, networks.sample_features(parts))
    assert count_parameters(shapes["params"]) <= 16_000
    lines = (tmp_path / "architecture.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["stage"] == "search"
    for alphas, weights, entropy in zip(
        found.trees[ARCHITECTURE], last["weights"], last["entropy"]
    ):
        p = np.exp(alphas) / np.exp(alphas).sum()
        np.testing.assert_allclose(weights, p, rtol=1e-4)
        share = -np.sum(p * np.log(p)) / np.log(len(p))
        assert entropy == pytest.approx(share, abs=1e-4)


def traced_macs(model, parts):
    features = networks.sample_features(parts)
    return count_macs(
        lambda variables, x: model.apply(variables, x, train=False),
        networks.variable_shapes(model, features),
        features,
    )


def test_random_baseline_obeys_the_limits_and_follows_the_seed(tmp_path):
    # The networks of this small space have 0.8 to 1.4 million.
    limit = 900_000
    parts = nas_parts("mfcc10,random", max_macs=limit)
    dispatch.check(parts, tmp_path)
    dispatch.run(parts, 0, tmp_path)
    model = networks.create_network(parts, tmp_path)
    variables = networks.variable_shapes(model, networks.sample_features(parts))
    costs, bounds = proxyless_space.costs_of(parts, proxyless_space.create_space(parts))
    places = [
        names.index(name)
        for names, name in zip(
            proxyless_space.create_space(parts).candidates, model.layers
        )
    ]
    parameters = bounds.fixed_parameters + sum(
        int(cost.parameters[i]) for cost, i in zip(costs, places)
    )
    # the fixed part and the layers together are the network
    assert count_parameters(variables["params"]) == parameters
    macs = bounds.fixed_macs + sum(int(c.macs[i]) for c, i in zip(costs, places))
    assert macs == traced_macs(model, parts) <= limit
    parts.config.search.max_macs = 0
    free = networks.stand_in(parts).clone(layers=proxyless_space.random_layers(parts))
    assert traced_macs(free, parts) > limit
    parts.config.search.max_macs = limit
    assert proxyless_space.random_layers(parts) == model.layers
    parts.config.seed = 1
    others = {proxyless_space.random_layers(parts)}
    parts.config.seed = 2
    others.add(proxyless_space.random_layers(parts))
    assert others != {model.layers}


def test_learned_filters_count_among_what_is_fixed():
    costs = {}
    for words in ("sinc40", "mfcc40"):
        parts = nas_parts(words)
        costs[words] = proxyless_space.costs_of(
            parts, proxyless_space.create_space(parts)
        )
    (sinc, fixed), (mfcc, plain) = costs.values()
    for one, other in zip(sinc, mfcc):
        np.testing.assert_array_equal(one.macs, other.macs)
    assert fixed.fixed_parameters == plain.fixed_parameters + 80
    assert fixed.fixed_macs == plain.fixed_macs + 98 * 400 * 40
    stem, last, head = 9 * 10 + 20, 40 * 80 + 160, 81 * len(LABELS)
    assert plain.fixed_parameters == stem + last + head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_parameters": 3000}, "No network of the space.*fewest parameters"),
        ({"max_macs": 10}, "No network of the space"),
        ({"min_parameters": 109_000}, "No network of the space.*, the most "),
        ({"min_parameters": 20_000, "max_parameters": 19_000}, "No network of the"),
        ({"architecture_data": "halves"}, "did you mean 'half'"),
        ({"reference_macs": 1.0}, "reference_macs = 1"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_training(change, message):
    with pytest.raises(UserError, match=message):
        proxyless_space.check(nas_parts(**change))


def test_stages_that_cannot_search_are_refused():
    parts = nas_parts()
    parts.config.stages[1].architecture_every = 0
    with pytest.raises(UserError, match="never trains the architecture"):
        proxyless_space.check(parts)
    parts = nas_parts()
    parts.config.data.on_device = True
    with pytest.raises(UserError, match="architecture_data to 'half'"):
        proxyless_space.check(parts)
    # What trains no architecture has no use for the validation clips.
    drawn = nas_parts("mfcc10,random")
    drawn.config.data.on_device = True
    proxyless_space.check(drawn, "random_search")
    parts.config.network.layers = "E2K3,SKIP,SKIP,E2K3,SKIP,SKIP"
    proxyless_space.check(parts)
    drawn.config.front_filter.name = "dynamic"
    with pytest.raises(UserError, match="kind 'random_search' searches a network wi"):
        proxyless_space.check(drawn, "random_search")
    parts.config.network.name = "tenet12"
    with pytest.raises(UserError, match="searches the network 'mbconv'"):
        proxyless_space.check(parts)


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"warmup_epochs": 4 / (23 / 8)}, 0),
        ({"architecture_every": 5}, 0),
        ({"warmup_epochs": 3 / (23 / 8)}, 1),
        ({"warmup_epochs": 3 / (23 / 8), "architecture_every": 3}, 0),
        ({"warmup_epochs": 2 / (23 / 8), "architecture_every": 3}, 1),
        ({"warmup_epochs": 0.0, "architecture_every": 1}, 4),
        ({"warmup_epochs": 1 / (23 / 8), "architecture_every": 1}, 3),
    ],
)
def test_a_search_without_a_step_of_its_architecture_is_refused(change, count):
    parts = nas_parts()
    parts.config.stages[1].update(change)
    plan, stage = runner.plan_of(parts, 1, 23), parts.config.stages[1]
    steps = [
        step
        for step in range(1, plan.total_steps + 1)
        if step > proxyless._start(stage, plan) and step % stage.architecture_every == 0
    ]
    assert proxyless.architecture_steps(stage, plan) == len(steps) == count
    if count:
        proxyless.check(parts, 1)
    else:
        with pytest.raises(UserError, match="0 steps of its architecture in 4 steps"):
            proxyless.check(parts, 1)
    # a warm-up has none
    proxyless.check(parts, 0)


def test_given_layers_obey_the_limits():
    # the published count, without 60 filters and with fewer labels
    largest = 109_622 - 2 * 60 - 81 * (12 - len(LABELS))
    parts = nas_parts(max_parameters=largest - 1)
    parts.config.network.layers = ",".join(["E6K7"] * 6)
    told = rf"has {largest:,} parameters and .* not within .*max_parameters = "
    with pytest.raises(UserError, match=told):
        proxyless_space.check(parts)
    parts.config.search.max_parameters = largest
    proxyless_space.check(parts)
    parts.config.search.max_macs = 1_000_000
    with pytest.raises(UserError, match=r"not within .*max_macs = 1,000,000"):
        proxyless_space.check(parts)


def test_given_layers_make_the_search_needless(tmp_path):
    parts = nas_parts()
    parts.config.network.layers = "E1K3,SKIP,SKIP,E2K5,SKIP,E6K7"
    dispatch.check(parts, tmp_path)
    networks.keep_given_genotype(parts, tmp_path)
    assert dispatch.run(parts, 0, tmp_path) == dispatch.run(parts, 1, tmp_path) == []
    assert networks.create_network(parts, tmp_path).layers[3] == "E2K5"
    parts.config.network.layers = "E1K3,SKIP,SKIP,E2K3,SKIP,E6K7"
    with pytest.raises(UserError, match=r"network\.layers=.* is not the network"):
        networks.keep_given_genotype(parts, tmp_path)


@pytest.mark.parametrize(
    ("words", "method"),
    [("mfcc10", "random"), ("mfcc10", "proxylss"), ("mfcc10,random", "proxyless")],
)
def test_a_method_that_the_stages_do_not_use_is_refused(words, method, tmp_path):
    with pytest.raises(UserError, match=f"method = '{method}', but .* by '"):
        dispatch.check(nas_parts(words, method=method), tmp_path)


def test_epochs_of_the_architecture_count_from_where_it_begins_to_move():
    stage = end_to_end_nas.get_config("cpu").unlock().stages[1]
    stage.update(architecture_every=5, warmup_epochs=1.0)
    for optimizer in (stage.optimizer, stage.architecture_optimizer):
        optimizer.update(schedule="epoch_step", step_epochs=(2.0,), step_factor=0.0)
    plan = loop.StagePlan("search", 100, 20.0, 20, 10, 8)
    made, schedule = proxyless._optimizers(stage, plan)
    assert [float(schedule(step)) > 0 for step in (39, 40)] == [True, False]
    alphas, moves = {"alpha": jnp.ones(3)}, []
    state = made[ARCHITECTURE].init(alphas)
    for _ in range(10):
        updates, state = made[ARCHITECTURE].update(alphas, state, alphas)
        moves.append(bool(jnp.any(updates["alpha"] != 0)))
    # Two epochs of twenty steps, of which it moves in every fifth.
    assert moves == [True] * 8 + [False] * 2
