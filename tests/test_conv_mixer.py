import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import (
    QUICK,
    assert_embeds,
    batch_norm,
    conv_centred,
    random_variables,
)
from scipy.special import erf, expit

from kws_jax.models import conv_mixer
from kws_jax.models.conv_mixer import ConvMixer

RNG = np.random.default_rng(0)


def swish(x):
    return x * expit(x)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


class Equations:
    """Fig. 1 and equations (1) to (4) in NumPy, float64, on x [b, t, c].

    Kernels and dilations are those of the paper, whatever the network's own are.
    """

    def __init__(self, variables, *, train=False):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.train = train

    def at(self, path):
        """The parameters and statistics of the layer at "block/layer"."""
        p, s = self.params, self.stats
        for name in path.split("/"):
            p, s = p[name], s.get(name, {})
        return p, s

    def norm(self, x, path):
        p, s = self.at(path)
        return batch_norm(x, s, p, 1e-5, train=self.train)

    def separable(self, x, path, kernel, dilation=1):
        """Depthwise along time, 1×1, BN, swish; nothing between the first two."""
        p, _ = self.at(path)
        w = p["depthwise"]["kernel"]
        assert w.shape == (kernel, 1, x.shape[-1])
        x = conv_centred(x[:, :, None], w[:, None], dilation=dilation)[:, :, 0]
        return swish(self.norm(x @ p["pointwise"]["kernel"], f"{path}/bn"))

    def frequency(self, x, path, kernel, maps):
        """3×3 to maps, swish, depthwise along frequency, swish, 1×1 to one map."""
        p, _ = self.at(path)
        assert p["expand"].shape == (3, 3, 1, maps)
        assert p["depthwise"].shape == (1, kernel, 1, maps)
        y = swish(conv_centred(x[..., None], p["expand"]))
        return swish(conv_centred(y, p["depthwise"])) @ p["project"]

    def mlp(self, x, path):
        """x + W₂ GELU(W₁ LN(x)), both of the last axis, with biases."""
        p, _ = self.at(path)
        y = x - x.mean(-1, keepdims=True)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
        y = y * p["norm"]["scale"] + p["norm"]["bias"]
        y = gelu(y @ p["dense1"]["kernel"] + p["dense1"]["bias"])
        return x + y @ p["dense2"]["kernel"] + p["dense2"]["bias"]

    def block(self, x, path, time_kernel, frequency_kernel, maps):
        y1 = self.frequency(x, f"{path}/frequency", frequency_kernel, maps)
        y1 = swish(self.norm(y1, f"{path}/bn"))[..., 0]
        y2 = self.separable(y1, f"{path}/time", time_kernel)
        u = self.mlp(y2.swapaxes(1, 2), f"{path}/mix_time").swapaxes(1, 2)
        y3 = swish(self.mlp(u, f"{path}/mix_frequency"))
        return x + y1 + y3

    def embed(self, features):
        x = self.separable(features, "stem", 5)
        y = self.separable(x, "pre/layer0", 7)
        x = x + self.separable(y, "pre/layer1", 1)
        for i, sizes in enumerate([(9, 5, 64), (11, 5, 32), (13, 7, 16), (15, 7, 8)]):
            x = self.block(x, f"blocks_{i}", *sizes)
        x = self.separable(x, "post_0", 17)
        x = self.separable(x, "post_1", 19, dilation=2)
        return self.separable(x, "post_2", 1).max(1)


@pytest.mark.parametrize("train", [False, True])
def test_block_follows_its_equations(train):
    block = conv_mixer.ConvMixerBlock(9, 5, 3)
    x = RNG.normal(size=(2, 13, 8)).astype(np.float32)
    variables = random_variables(block, x)
    got, _ = jax.jit(
        lambda x: block.apply(variables, x, train=train, mutable=["batch_stats"]),
        compiler_options=QUICK,
    )(x)
    inside = {kind: {"block": tree} for kind, tree in variables.items()}
    expected = Equations(inside, train=train).block(np.float64(x), "block", 9, 5, 3)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_network_is_its_layers_in_order():
    model = ConvMixer(5, channels=8)
    x = RNG.normal(size=(2, 41, 8)).astype(np.float32)
    variables = random_variables(model, x)

    def expected(train):
        return Equations(variables, train=train).embed(np.float64(x))

    assert_embeds(model, variables, x, expected)


def test_frequency_branch_sees_a_clip_alone():
    """What lets it run clip by clip."""
    x = jnp.asarray(RNG.normal(size=(3, 7, 8)), jnp.float32)
    branch = conv_mixer.FrequencyBranch(maps=4, kernel=5)
    variables = branch.init(jax.random.key(0), x)
    single = [branch.apply(variables, x[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(
        branch.apply(variables, x), jnp.concatenate(single), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    "module",
    [conv_mixer.PreBlock, functools.partial(conv_mixer.ConvMixerBlock, 3, 3, 2)],
)
def test_dropout_acts_in_training_only_where_asked_for(module, dropout):
    module = module(dropout=dropout)
    x = RNG.normal(size=(2, 8, 4)).astype(np.float32)
    variables = random_variables(module, x)

    def run(key):
        rngs = {"dropout": jax.random.key(key)}
        return module.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs=rngs
        )[0]

    one, other = jax.jit(lambda: (run(0), run(1)), compiler_options=QUICK)()
    assert np.allclose(one, other) == (dropout == 0.0)
