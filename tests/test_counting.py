import jax
import jax.numpy as jnp
import pytest
from jax import lax

from kws_jax.models.counting import count_macs
from kws_jax.models.genotype import Genotype
from kws_jax.models.registry import create_model


def model_macs(name, frames=98, bands=40, **settings):
    model = create_model(name, 12, **settings)
    features = jax.ShapeDtypeStruct((1, frames, bands), jnp.float32)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), features
    )
    return count_macs(lambda v, x: model.apply(v, x, train=False), variables, features)


def test_tc_resnet14_macs_are_the_published_count():
    assert model_macs("tc_resnet14", width=1.5) == 6_677_136


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    [("tc_resnet8", 1.0, 1.52), ("tc_resnet8", 1.5, 3.28), ("tc_resnet14", 1.0, 3.03)],
)
def test_tc_resnet_macs_round_to_the_table(name, width, millions):
    assert model_macs(name, width=width) / 1e6 == pytest.approx(millions, abs=5e-3)


@pytest.mark.parametrize("shortcut", ["1x1", "jx1"])
def test_searched_macs_follow_the_formula(shortcut):
    layers = "C7SE C9SE+C5SE C3SE C5 C7 SKIP"
    genotype = Genotype(
        tuple(tuple(names.split("+")) for names in layers.split()), shortcut=shortcut
    )
    expected = 3 * 40 * 24 * 98 + 72 * 12
    before, frames = 24, 98
    for names, stride, c in zip(genotype.layers, genotype.strides, genotype.channels):
        frames = -(-frames // stride)
        for name in names:
            if name == "SKIP":
                continue
            k = int(name[1])
            expected += frames * (k * before * c + k * c * c)
            if name.endswith("SE"):
                expected += 2 * c * (c // 4)
            if stride == 2:
                expected += frames * before * c * (1 if shortcut == "1x1" else k)
        before = c
    assert model_macs("searched", genotype=genotype) == expected


def test_conv_mixer_macs_are_the_published_count():
    assert model_macs("conv_mixer", bands=64) == 21_966_080


def test_macs_grow_with_the_batch():
    w = jnp.zeros((3, 4, 5))

    def conv(x):
        return lax.conv_general_dilated(
            x, w, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    one = count_macs(conv, jnp.zeros((1, 11, 4)))
    assert one == 6 * 3 * 4 * 5
    assert count_macs(conv, jnp.zeros((7, 11, 4))) == 7 * one


def test_grouped_convolution_counts_its_own_channels_only():
    def depthwise(x):
        return lax.conv_general_dilated(
            x,
            jnp.zeros((3, 1, 8)),
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=8,
        )

    assert count_macs(depthwise, jnp.zeros((1, 10, 8))) == 10 * 8 * 3


def test_batched_products_and_einsum():
    a, b = jnp.zeros((2, 3, 4)), jnp.zeros((2, 4, 5))
    assert count_macs(lambda a, b: jnp.einsum("nij,njk->nik", a, b), a, b) == 120


def test_counts_inside_jit_scan_cond_and_custom_gradients():
    w, x = jnp.zeros((4, 4)), jnp.zeros((2, 4))

    @jax.custom_vjp
    def product(x):
        return x @ w

    product.defvjp(lambda x: (x @ w, ()), lambda _, g: (g @ w.T,))
    once = 2 * 4 * 4
    assert count_macs(jax.jit(lambda x: x @ w), x) == once
    assert count_macs(jax.checkpoint(lambda x: x @ w), x) == once
    assert count_macs(product, x) == once

    def scanned(x):
        return lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0]

    assert count_macs(scanned, x) == 5 * once

    def branched(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    assert count_macs(branched, x) == 2 * once


def test_a_while_loop_with_products_is_refused():
    w = jnp.zeros((4, 4))

    def looped(x):
        return lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="while"):
        count_macs(looped, jnp.zeros((2, 4)))
