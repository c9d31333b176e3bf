import jax
import numpy as np
import pytest
from network_values import QUICK, random_variables

from kws_jax.errors import UserError
from kws_jax.models import mbconv
from kws_jax.models.counting import count_macs, count_parameters
from kws_jax.models.registry import create_model

RNG = np.random.default_rng(0)
MIXED = ("E2K5", "SKIP", "E1K3", "E3K7", "E1K5", "SKIP")


def conv_norm(torch, x, p, s, act, *, stride=1, groups=1):
    """PyTorch's layout [b, c, f, t]."""

    def tensor(value):
        return torch.tensor(np.asarray(value, np.float64))

    kernel = tensor(p["conv"]["kernel"]).permute(3, 2, 0, 1)
    pad = kernel.shape[-1] // 2
    x = torch.nn.functional.conv2d(x, kernel, None, stride, pad, 1, groups)
    p, s = jax.tree.map(tensor, (p["bn"], s["bn"]))
    args = (s["mean"], s["var"], p["scale"], p["bias"])
    return act(torch.nn.functional.batch_norm(x, *args, eps=1e-3))


def block(torch, x, p, s, act, stride):
    y = x
    if "expand" in p:
        y = conv_norm(torch, y, p["expand"], s["expand"], act)
    groups = y.shape[1]
    y = conv_norm(
        torch, y, p["depthwise"], s["depthwise"], act, stride=stride, groups=groups
    )
    y = conv_norm(torch, y, p["project"], s["project"], lambda y: y)
    return y + x if y.shape == x.shape else y


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_network_follows_its_definition(activation):
    torch = pytest.importorskip("torch", reason="an independent implementation")
    act = getattr(torch.nn.functional, activation)
    model = mbconv.MBConvNet(3, MIXED, activation=activation)
    # Even sizes, where PyTorch's padding is not TensorFlow's.
    x = 9 * RNG.normal(size=(2, 24, 20)).astype(np.float32)
    variables = random_variables(model, x)
    p, s = variables["params"], variables["batch_stats"]
    assert set(p) == {"stem", "last", "head", *(f"blocks_{i}" for i in (0, 2, 3, 4))}

    y = torch.tensor(np.float64(x)).mT[:, None]
    y = conv_norm(torch, y, p["stem"], s["stem"], act, stride=2)
    for i, name in enumerate(MIXED):
        if name != "SKIP":
            at = f"blocks_{i}"
            assert ("expand" in p[at]) == (name[1] != "1")
            assert p[at]["depthwise"]["conv"]["kernel"].shape[0] == int(name[3])
            y = block(torch, y, p[at], s[at], act, 2 if i % 3 == 0 else 1)
    expected = conv_norm(torch, y, p["last"], s["last"], act).mean((2, 3))

    got = jax.jit(
        lambda x: model.apply(variables, x, train=False, method="embed"),
        compiler_options=QUICK,
    )(x)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def size_by_hand(layers, widths, bands, frames):
    """Parameters with scale and shift, and MACs: (parameters, MACs)."""
    height, width = -(-bands // 2), -(-frames // 2)
    params, macs = 9 * widths[0] + 2 * widths[0], 9 * widths[0] * height * width
    c = widths[0]
    for i, name in enumerate(layers):
        if name == "SKIP":
            continue
        e, k, d = int(name[1]), int(name[3]), widths[1 + i // 3]
        if e > 1:
            params += c * e * c + 2 * e * c
            macs += c * e * c * height * width
        if i % 3 == 0:
            height, width = -(-height // 2), -(-width // 2)
        params += k * k * e * c + 2 * e * c + e * c * d + 2 * d
        macs += (k * k * e * c + e * c * d) * height * width
        c = d
    params += c * widths[3] + 2 * widths[3] + 12 * widths[3] + 12
    return params, macs + c * widths[3] * height * width + 12 * widths[3]


@pytest.mark.parametrize("round_widths", [False, True])
@pytest.mark.parametrize("layers", [("E6K7",) * 6, MIXED])
@pytest.mark.parametrize("bands", [40, 60])
def test_parameters_and_macs_follow_the_formula(layers, round_widths, bands):
    widths = (16, 24, 40, 80) if round_widths else (10, 20, 40, 80)
    model = create_model("mbconv", 12, layers=layers, round_widths=round_widths)
    x = jax.ShapeDtypeStruct((1, 98, bands), np.float32)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), x
    )
    macs = count_macs(lambda v, x: model.apply(v, x, train=False), variables, x)
    params = count_parameters(variables["params"])
    assert (params, macs) == size_by_hand(layers, widths, bands, 98)
    if layers == ("E6K7",) * 6 and bands == 60 and not round_widths:
        # The published sums have 60 filters of 400 taps, each of two parameters.
        assert params + 2 * 60 == 109_622
        assert macs + 400 * 98 * 60 == 21_712_960


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": ("SKIP",) + ("E1K3",) * 5},
        {"layers": ("E1K3",) * 5},
        {"layers": ("E7K3",) * 6},
        {"activation": "swish"},
    ],
)
def test_settings_that_do_not_fit_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        create_model("mbconv", 12, **settings)
