"""Training in bfloat16: what is computed in it, what stays float32, what it learns."""

import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import autokws
from configs.common import spec_augment
from kws_jax.errors import UserError
from kws_jax.models.counting import _inner
from kws_jax.models.registry import MODELS, create_model, model_settings
from kws_jax.search.architecture import init_architecture
from kws_jax.search.methods import create_method
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet
from kws_jax.stages import learner, networks, search
from kws_jax.training.state import ARCHITECTURE, WEIGHTS, create_train_state
from kws_jax.training.step import make_train_step

STAGE = ConfigDict({"label_smoothing": 0.1, "spec_augment": spec_augment()})
# "audio" of a batch holds features already.
PARTS = SimpleNamespace(features=lambda audio: audio)
SETTINGS = {
    "genotype": "autokws-noisydarts",
    "layers": ("E6K3", "E1K5", "SKIP", "E3K7", "SKIP", "E1K3"),
}


def products(jaxpr):
    """Types of the operands of all convolutions and matrix products."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield from (variable.aval.dtype.name for variable in equation.invars)
        for inner in _inner(equation.params):
            yield from products(inner)


def batch_of(shape, labels=4, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, labels, shape[0])
    # Each label raises some features.
    features = rng.normal(size=shape)
    features[..., :labels] += 2 * np.eye(labels)[label][:, None]
    return {
        "audio": jnp.float32(features),
        "label": jnp.int32(label),
        "mask": jnp.ones(shape[0], bool),
    }


def check_program(loss_fn, trees, batch_stats, batch):
    """The network's products are in bfloat16; all that comes out is float32."""

    def gradients(trees, batch_stats):
        return jax.value_and_grad(loss_fn, has_aux=True)(
            trees, batch_stats, batch, jax.random.key(0)
        )

    traced = jax.make_jaxpr(gradients, return_shape=True)
    jaxpr, ((_, (_, statistics)), gradient) = traced(trees, batch_stats)
    found = list(products(jaxpr.jaxpr))
    assert len(found) > 8
    assert set(found) == {"bfloat16"}
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, trees)
    chex.assert_trees_all_equal_shapes_and_dtypes(statistics, batch_stats)
    assert {x.dtype.name for x in jax.tree.leaves((gradient, statistics))} == {
        "float32"
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_network_computes_in_bfloat16_and_is_kept_in_float32(name):
    known = {k: v for k, v in SETTINGS.items() if k in model_settings(name)}
    model = create_model(name, 4, **known)
    batch = batch_of((2, 98, 40))
    shapes = networks.variable_shapes(model, batch["audio"])
    params, batch_stats = networks.split_variables(shapes)
    loss_fn = learner.classification_loss(PARTS, STAGE, model, compute_dtype="bfloat16")
    check_program(loss_fn, {WEIGHTS: params}, batch_stats, batch)


@pytest.mark.parametrize("method", ["darts", "fairdarts", "noisydarts"])
def test_every_search_computes_in_bfloat16_and_is_kept_in_float32(method):
    method = create_method(method)
    space = SearchSpace(channels=(4, 4, 6, 6, 8, 8), stem_channels=4)
    supernet = SuperNet(4, space, skip_noise=method.skip_noise)
    batch = batch_of((2, 98, 40))
    architecture = init_architecture(jax.random.key(0), space.candidates)
    shapes = networks.variable_shapes(
        supernet, batch["audio"], method.op_weights(architecture)
    )
    params, batch_stats = networks.split_variables(shapes)
    trees = {WEIGHTS: params, ARCHITECTURE: architecture}
    loss_fn = search.search_loss(
        PARTS, STAGE, supernet, method, compute_dtype="bfloat16"
    )
    check_program(loss_fn, trees, batch_stats, batch)


STEPS = 30


@functools.cache
def trained(compute_dtype):
    """States and losses of a tiny TC-ResNet8, from the same weights and batches."""
    model = create_model(
        "tc_resnet8", 4, width=0.25, dropout=0.0, batch_norm_momentum=0.9
    )
    batches = [batch_of((32, 24, 10), seed=seed) for seed in range(STEPS)]
    variables = networks.initial_variables(
        model, jax.random.key(0), batches[0]["audio"][:1]
    )
    params, batch_stats = networks.split_variables(variables)
    transformations = {WEIGHTS: optax.sgd(0.02, 0.9)}
    loss_fn = learner.classification_loss(
        PARTS, STAGE, model, compute_dtype=compute_dtype
    )
    step = jax.jit(make_train_step(loss_fn, transformations))
    state = create_train_state({WEIGHTS: params}, batch_stats, transformations)
    states, losses = [], []
    for batch in batches:
        state, metrics = step(state, batch, jax.random.key(1))
        states.append(jax.device_get(state))
        losses.append(metrics["loss"])
    return states, losses


def test_bfloat16_starts_with_the_loss_of_float32_and_lowers_it():
    (states, losses), (exact_states, exact) = trained("bfloat16"), trained("float32")
    chex.assert_trees_all_equal_shapes_and_dtypes(states[-1], exact_states[-1])
    assert losses[0].dtype == jnp.float32
    assert float(losses[0]) == pytest.approx(float(exact[0]), rel=0.02)
    # It was rounded at all.
    assert float(losses[0]) != float(exact[0])
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert np.mean(losses[-5:]) == pytest.approx(np.mean(exact[-5:]), rel=0.05)


def test_running_statistics_are_close_to_those_of_float32():
    (first, *_), (exact, *_) = trained("bfloat16")[0], trained("float32")[0]
    stats, expected = first.batch_stats, exact.batch_stats
    chex.assert_trees_all_equal_dtypes(stats, expected)
    # A mean is off by a part of the deviation, whatever its own size.
    chex.assert_trees_all_close(stats, expected, rtol=0.02, atol=0.01)
    # Kept in bfloat16, each of them would end in 16 zero bits.
    bits = np.concatenate([np.ravel(x).view(np.uint32) for x in jax.tree.leaves(stats)])
    assert (bits & 0xFFFF != 0).mean() > 0.9


def test_float32_is_what_the_network_computes_in_by_default():
    model = create_model("tc_resnet8", 4, width=0.25)
    batch = batch_of((2, 24, 10))
    shapes = networks.variable_shapes(model, batch["audio"])
    params, batch_stats = networks.split_variables(shapes)
    loss_fn = learner.classification_loss(PARTS, STAGE, model)
    jaxpr = jax.make_jaxpr(jax.grad(loss_fn, has_aux=True))(
        {WEIGHTS: params}, batch_stats, batch, jax.random.key(0)
    )
    assert set(products(jaxpr.jaxpr)) == {"float32"}


def test_second_order_search_in_bfloat16_is_refused():
    config = autokws.get_config("darts")
    config.search.order = 2
    parts = SimpleNamespace(config=config)
    search.create_method(parts)
    config.compute_dtype = "bfloat16"
    with pytest.raises(
        UserError, match=r"search.order = 2.*compute_dtype = 'bfloat16'"
    ):
        search.create_method(parts)
    config.search.order = 1
    search.create_method(parts)
