import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK, random_variables

from kws_jax.models import conv_mixer
from kws_jax.models.conv_mixer import ConvMixer

RNG = np.random.default_rng(0)


def swish(torch, x):
    return x * torch.sigmoid(x)


class Reference:
    """The equations of the paper in PyTorch's layers and layout [b, c, t]."""

    def __init__(self, torch, variables):
        self.torch, self.variables = torch, variables

    def tensor(self, value):
        return self.torch.tensor(np.asarray(value, np.float64))

    def norm(self, x, path):
        p, s = self.at(path)
        return self.torch.nn.functional.batch_norm(
            x,
            self.tensor(s["mean"]),
            self.tensor(s["var"]),
            self.tensor(p["scale"]),
            self.tensor(p["bias"]),
            eps=1e-5,
        )

    def at(self, path):
        p, s = self.variables["params"], self.variables["batch_stats"]
        for name in path:
            p, s = p[name], s.get(name, {})
        return p, s

    def separable(self, x, path, dilation=1):
        f = self.torch.nn.functional
        p, _ = self.at(path)
        w = self.tensor(p["depthwise"]["kernel"]).permute(2, 1, 0)
        pad = dilation * (w.shape[-1] - 1) // 2
        x = f.conv1d(x, w, padding=pad, dilation=dilation, groups=x.shape[1])
        x = f.conv1d(x, self.tensor(p["pointwise"]["kernel"]).T[..., None])
        return swish(self.torch, self.norm(x, (*path, "bn")))

    def frequency(self, x, path):
        """x [b, f, t] as an image with frequency first, as the paper has it."""
        f = self.torch.nn.functional
        p, _ = self.at(path)
        expand = self.tensor(p["expand"]).permute(3, 2, 1, 0)
        depthwise = self.tensor(p["depthwise"]).permute(3, 2, 1, 0)
        y = swish(self.torch, f.conv2d(x[:, None], expand, padding=1))
        pad = ((depthwise.shape[2] - 1) // 2, 0)
        y = f.conv2d(y, depthwise, padding=pad, groups=len(depthwise))
        project = self.tensor(p["project"]).T[..., None, None]
        return f.conv2d(swish(self.torch, y), project)

    def mlp(self, x, path):
        f = self.torch.nn.functional
        p = jax.tree.map(self.tensor, self.at(path)[0])
        y = f.layer_norm(x, x.shape[-1:], p["norm"]["scale"], p["norm"]["bias"], 1e-5)
        y = f.linear(y, p["dense1"]["kernel"].T, p["dense1"]["bias"])
        return x + f.linear(f.gelu(y), p["dense2"]["kernel"].T, p["dense2"]["bias"])

    def block(self, x, path=()):
        y1 = self.frequency(x, (*path, "frequency"))
        y1 = swish(self.torch, self.norm(y1, (*path, "bn")))[:, 0]
        y3 = self.mlp(self.separable(y1, (*path, "time")), (*path, "mix_time"))
        y3 = swish(self.torch, self.mlp(y3.mT, (*path, "mix_frequency")).mT)
        return x + y1 + y3

    def embed(self, features):
        x = self.separable(self.tensor(features).mT, ("stem",))
        y = self.separable(x, ("pre", "layer0"))
        x = x + self.separable(y, ("pre", "layer1"))
        for i in range(4):
            x = self.block(x, (f"blocks_{i}",))
        for i, dilation in enumerate([1, 2, 1]):
            x = self.separable(x, (f"post_{i}",), dilation)
        return x.amax(-1)


def test_block_follows_its_equations():
    torch = pytest.importorskip("torch", reason="an independent implementation")
    block = conv_mixer.ConvMixerBlock(9, 5, 3)
    x = RNG.normal(size=(2, 13, 8)).astype(np.float32)
    variables = random_variables(block, x)
    got = jax.jit(
        lambda x: block.apply(variables, x, train=False), compiler_options=QUICK
    )(x)
    expected = Reference(torch, variables).block(torch.tensor(np.float64(x)).mT).mT
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_network_is_its_layers_in_order():
    torch = pytest.importorskip("torch", reason="an independent implementation")
    model = ConvMixer(5, channels=8)
    x = RNG.normal(size=(2, 41, 8)).astype(np.float32)
    variables = random_variables(model, x)

    embed = jax.jit(
        lambda x: model.apply(variables, x, train=False, method="embed"),
        compiler_options=QUICK,
    )
    expected = Reference(torch, variables).embed(x)
    assert expected.shape == (2, 16)
    np.testing.assert_allclose(embed(x), expected, rtol=1e-3, atol=1e-4)


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
