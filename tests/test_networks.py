"""What every network must do, whatever its layers are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK, random_variables

from kws_jax.models.genotype import Genotype
from kws_jax.models.registry import MODELS, create_model

GENOTYPE = Genotype((("C3SE",), ("C5", "SKIP")), strides=(2, 1), channels=(4, 4))
# Small networks of every class: name, settings.
SMALL = [
    ("tc_resnet8", {"width": 0.25, "se": True}),
    ("searched", {"genotype": GENOTYPE}),
    ("conv_mixer", {"channels": 6}),
    ("tenet6_narrow", {"mtconv": True}),
    ("res15_narrow", {}),
    ("mbconv", {"layers": ("E2K3", "SKIP", "E1K5", "E2K3", "SKIP", "SKIP")}),
]
B, T, F, K = 3, 12, 8, 5


def features(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, T, F)).astype(np.float32)


def small(name, settings):
    model = create_model(name, K, **settings)
    return model, random_variables(model, features())


def test_every_class_of_network_is_tested_here():
    # The acoustic model has no embedding of a clip; it is tested in test_acoustic.py.
    classes = {c for name, (c, _) in MODELS.items() if name != "acoustic_dnn"}
    assert {MODELS[name][0] for name, _ in SMALL} == classes


@pytest.mark.parametrize(("name", "settings"), SMALL)
def test_logits_are_the_head_on_the_embedding(name, settings):
    model, variables = small(name, settings)

    def both(x):
        embedding = model.apply(variables, x, train=False, method="embed")
        return embedding, model.apply(variables, x, train=False)

    embedding, logits = jax.jit(both, compiler_options=QUICK)(features())
    linear = variables["params"]["head"]["linear"]
    assert embedding.shape == (B, linear["kernel"].shape[0])
    expected = np.float64(embedding) @ linear["kernel"] + linear.get("bias", 0.0)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)
    assert np.ptp(logits, axis=0).min() > 0


@pytest.mark.parametrize(("name", "settings"), SMALL)
def test_training_moves_all_statistics_and_gives_every_parameter_a_gradient(
    name, settings
):
    model, variables = small(name, settings)
    target = np.random.default_rng(2).normal(size=(B, K))

    def loss(params, x):
        logits, updates = model.apply(
            variables | {"params": params},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(3)},
        )
        return jnp.mean((logits - target) ** 2), updates

    step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
    gradients, updates = step(variables["params"], features())
    for path, gradient in jax.tree.leaves_with_path(gradients):
        where = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(gradient)), where
        assert np.any(gradient != 0), where
    before, after = variables["batch_stats"], updates["batch_stats"]
    # Not every entry: behind a batch norm the mean of some channels stays 0.
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert all(jax.tree.leaves(moved)), moved
