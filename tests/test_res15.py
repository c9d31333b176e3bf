import jax
import numpy as np
import pytest
from network_values import (
    assert_embeds,
    batch_norm,
    conv_centred,
    random_variables,
)

from kws_jax.models.counting import count_macs
from kws_jax.models.registry import create_model
from kws_jax.models.res15 import Res15


def embed_by_hand(features, variables, *, train):
    """honk's order of layers in NumPy, float64, on x [b, t, f, c]."""
    p, s = variables["params"]["body"], variables["batch_stats"]["body"]
    assert set(p) == {f"conv{i}" for i in range(14)}
    x = np.float64(features)[..., None]
    x = saved = np.maximum(conv_centred(x, p["conv0"]["kernel"]), 0)
    for i, dilation in enumerate([1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 16], start=1):
        y = conv_centred(x, p[f"conv{i}"]["kernel"], dilation=dilation)
        y = np.maximum(y, 0)
        if i % 2 == 0:
            y = saved = y + saved
        x = batch_norm(y, s[f"bn{i}"], {}, 1e-5, train=train)
    return x.mean((1, 2))


def test_network_follows_its_definition():
    model = Res15(3, maps=4)
    x = np.random.default_rng(0).normal(size=(2, 19, 17)).astype(np.float32)
    variables = random_variables(model, x)

    def expected(train):
        return embed_by_hand(x, variables, train=train)

    assert_embeds(model, variables, x, expected)


@pytest.mark.parametrize(("name", "maps"), [("res15", 45), ("res15_narrow", 19)])
@pytest.mark.parametrize("frames", [98, 101])
def test_macs_follow_the_formula(name, maps, frames):
    model = create_model(name, 12)
    x = jax.ShapeDtypeStruct((1, frames, 40), np.float32)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), x
    )
    counted = count_macs(lambda v, x: model.apply(v, x, train=False), variables, x)
    assert counted == frames * 40 * 9 * (maps + 13 * maps**2) + 12 * maps
    if maps == 45:
        assert round(counted / 1e6) == {98: 930, 101: 959}[frames]
