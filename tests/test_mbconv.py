import jax
import numpy as np
import pytest
from network_values import (
    assert_embeds,
    batch_norm,
    conv_centred,
    random_variables,
)

from kws_jax.errors import UserError
from kws_jax.models import mbconv
from kws_jax.models.counting import count_macs, count_parameters
from kws_jax.models.registry import create_model

RNG = np.random.default_rng(0)
MIXED = ("E2K5", "SKIP", "E1K3", "E3K7", "E1K5", "SKIP")


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "none": lambda x: x,
}


class Definition:
    """Table 1 in NumPy, float64, on x [b, f, t, c]."""

    def __init__(self, variables, act, *, train):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.act, self.train = act, train

    def layer(self, x, path, act, kernel, stride=1):
        p, s = self.params, self.stats
        for name in path.split("/"):
            p, s = p[name], s[name]
        assert p["conv"]["kernel"].shape[:2] == (kernel, kernel)
        y = conv_centred(x, p["conv"]["kernel"], stride)
        return ACTIVATIONS[act](batch_norm(y, s["bn"], p["bn"], 1e-3, train=self.train))

    def block(self, x, path, expansion, kernel, channels, stride):
        y = x
        assert ("expand" in self.params[path]) == (expansion > 1)
        if expansion > 1:
            y = self.layer(x, f"{path}/expand", self.act, 1)
        assert y.shape[-1] == expansion * x.shape[-1]
        y = self.layer(y, f"{path}/depthwise", self.act, kernel, stride)
        y = self.layer(y, f"{path}/project", "none", 1)
        assert y.shape[-1] == channels
        return y + x if y.shape == x.shape else y

    def embed(self, features, layers):
        x = self.layer(features.swapaxes(1, 2)[..., None], "stem", self.act, 3, 2)
        assert x.shape[-1] == 10
        for i, name in enumerate(layers):
            if name != "SKIP":
                channels, stride = (20, 40)[i // 3], 2 if i % 3 == 0 else 1
                sizes = int(name[1]), int(name[3]), channels, stride
                x = self.block(x, f"blocks_{i}", *sizes)
        return self.layer(x, "last", self.act, 1).mean((1, 2))


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_network_follows_its_definition(activation):
    model = mbconv.MBConvNet(3, MIXED, activation=activation)
    # Even sizes, where PyTorch's padding is not TensorFlow's.
    x = 9 * RNG.normal(size=(2, 24, 20)).astype(np.float32)
    variables = random_variables(model, x)
    kept = {f"blocks_{i}" for i in (0, 2, 3, 4)}
    assert set(variables["params"]) == {"stem", "last", "head", *kept}

    def expected(train):
        definition = Definition(variables, activation, train=train)
        return definition.embed(np.float64(x), MIXED)

    assert_embeds(model, variables, x, expected)


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
