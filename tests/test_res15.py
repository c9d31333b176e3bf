import jax
import numpy as np
import pytest
from network_values import QUICK, random_variables

from kws_jax.models.counting import count_macs
from kws_jax.models.registry import create_model
from kws_jax.models.res15 import Res15


def embed_by_torch(torch, features, variables):
    """honk's order of layers, in PyTorch's layout [b, c, t, f]."""
    f = torch.nn.functional
    p, s = variables["params"]["body"], variables["batch_stats"]["body"]
    assert set(p) == {f"conv{i}" for i in range(14)}

    def tensor(value):
        return torch.tensor(np.asarray(value, np.float64))

    x = tensor(features)[:, None]
    for i in range(14):
        dilation = 2 ** ((i - 1) // 3) if i else 1
        kernel = tensor(p[f"conv{i}"]["kernel"]).permute(3, 2, 0, 1)
        y = f.relu(f.conv2d(x, kernel, padding=dilation, dilation=dilation))
        if i == 0:
            x = saved = y
            continue
        if i % 2 == 0:
            y = saved = y + saved
        stats = s[f"bn{i}"]
        x = f.batch_norm(y, tensor(stats["mean"]), tensor(stats["var"]), eps=1e-5)
    return x.mean((2, 3))


def test_network_follows_its_definition():
    torch = pytest.importorskip("torch", reason="an independent implementation")
    model = Res15(3, maps=4)
    x = np.random.default_rng(0).normal(size=(2, 19, 17)).astype(np.float32)
    variables = random_variables(model, x)
    got = jax.jit(
        lambda x: model.apply(variables, x, train=False, method="embed"),
        compiler_options=QUICK,
    )(x)
    expected = embed_by_torch(torch, x, variables)
    assert expected.shape == (2, 4)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


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
