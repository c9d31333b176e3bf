import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.errors import UserError
from kws_jax.models import blocks, registry
from kws_jax.models.counting import (
    count_parameters,
    count_parameters_with_statistics,
)
from kws_jax.models.genotype import save_genotype

# (name, settings) -> trainable parameters, and with batch statistics
PARAMETERS = [
    ("tc_resnet8", {}, 65_168, 65_824),
    ("tc_resnet8", {"width": 1.5}, 144_264, 145_248),
    ("tc_resnet14", {}, 135_856, 136_928),
    ("tc_resnet14", {"width": 1.5}, 303_000, 304_608),
    ("searched", {"genotype": "autokws-darts"}, 70_509, 71_325),
    ("searched", {"genotype": "autokws-fairdarts"}, None, None),
    ("searched", {"genotype": "autokws-noisydarts"}, None, None),
]


def shapes(model, batch=1, frames=98):
    features = jax.ShapeDtypeStruct((batch, frames, 40), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), features
    )


@pytest.mark.parametrize(("name", "settings", "trainable", "with_statistics"), PARAMETERS)
def test_parameter_counts_are_exact(name, settings, trainable, with_statistics):
    variables = shapes(registry.create_model(name, 12, **settings))
    assert count_parameters(variables["params"]) == trainable
    assert count_parameters_with_statistics(variables) == with_statistics


def test_every_registered_model_has_a_known_parameter_count():
    assert {name for name, *_ in PARAMETERS} == set(registry.MODELS)
