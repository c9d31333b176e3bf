"""What holds a network is known to all that look for the network within."""

import dataclasses
import importlib
import inspect
import pkgutil
import typing

import flax.linen as nn
import jax
import pytest

from kws_jax import models
from kws_jax.models.front_filter import FilteredNetwork
from kws_jax.models.learned_frontend import FreeConv, WithFrontend
from kws_jax.models.light_conv import LightConv
from kws_jax.models.registry import create_model
from kws_jax.models.wrapped import HOLDERS, holder_of, inner, nested
from kws_jax.training.optimizers import has_head


def holding_modules():
    """Class of models/ -> its fields that are modules, for those that have any."""
    found = {}
    for file in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
        for _, kind in inspect.getmembers(importlib.import_module(file.name)):
            if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
                continue
            hints = typing.get_type_hints(kind)
            fields = {field.name for field in dataclasses.fields(kind)} - {"parent"}
            held = {f for f in fields if nn.Module in modules_of(hints[f])}
            if held and kind is not nn.Module:
                found[kind] = held
    return found


def modules_of(hint):
    return (hint, *typing.get_args(hint))


def test_every_module_that_holds_a_network_names_it_as_one_of_the_holders():
    found = holding_modules()
    assert {WithFrontend, FilteredNetwork} <= set(found)
    for kind, fields in found.items():
        assert len(fields & set(HOLDERS)) == 1, kind


@pytest.mark.parametrize("wrap", [WithFrontend, FilteredNetwork])
def test_the_network_within_is_found_and_its_head_in_the_parameters(wrap):
    network = create_model("tc_resnet8", 3)
    assert (inner(network), holder_of(network)) == (network, None)
    front = FreeConv(taps=8, num_filters=8) if wrap is WithFrontend else LightConv()
    model = wrap(front, network)
    assert list(nested(model)) == [model, network]
    assert inner(WithFrontend(None, model)) == network
    frames = jax.ShapeDtypeStruct((1, 12, 8), "float32")
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), frames
    )
    assert has_head(shapes["params"])
