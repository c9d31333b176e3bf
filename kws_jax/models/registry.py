"""Models by name, for configs."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn

from kws_jax.errors import UserError, nearest
from kws_jax.models import acoustic_dnn
from kws_jax.models.conv_mixer import ConvMixer
from kws_jax.models.genotype import Genotype, load_genotype
from kws_jax.models.mbconv import ACTIVATIONS, MBConvNet, are_layers, load_layers
from kws_jax.models.res15 import Res15
from kws_jax.models.searched import SearchedTCNet
from kws_jax.models.tc_resnet import TCResNet
from kws_jax.models.tenet import TENet

# name -> (class, settings that the name fixes)
MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "tc_resnet8": (TCResNet, {"depth": 8}),
    "tc_resnet14": (TCResNet, {"depth": 14}),
    "searched": (SearchedTCNet, {}),
    "conv_mixer": (ConvMixer, {}),
    "res15": (Res15, {"maps": 45}),
    "res15_narrow": (Res15, {"maps": 19}),
    "mbconv": (MBConvNet, {}),
    "tenet6": (TENet, {"depth": 6, "channels": 32}),
    "tenet12": (TENet, {"depth": 12, "channels": 32}),
    "tenet6_narrow": (TENet, {"depth": 6, "channels": 16}),
    acoustic_dnn.NETWORK: (acoustic_dnn.AcousticDNN, {}),
    "tenet12_narrow": (TENet, {"depth": 12, "channels": 16}),
}
# setting -> (what is expected of it, its test)
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "width": ("a number of at least 1/16", lambda value: value >= 1 / 16),
    "channels": ("a whole number of at least 1", lambda value: value >= 1),
    "states": ("a whole number of at least 1", lambda value: value >= 1),
    "depth": ("a whole number of at least 1", lambda value: value >= 1),
    "hidden": ("a whole number of at least 1", lambda value: value >= 1),
    "context": ("a whole number of at least 0", lambda value: value >= 0),
    "acoustic_scale": ("a number above 0", lambda value: value > 0),
    "dropout": ("a share in [0, 1)", lambda value: 0 <= value < 1),
    "se_reduction": ("a whole number of at least 1", lambda value: value >= 1),
    "layers": (
        "six operations E1K3 … E6K7 or SKIP, the first and fourth not SKIP",
        are_layers,
    ),
}
# setting -> its names
CHOICES: dict[str, Iterable[str]] = {"activation": ACTIVATIONS}


def model_settings(name: str) -> tuple[str, ...]:
    """Names of the settings that `create_model(name, …)` takes.

    Raises:
      UserError: no model of this name.
    """
    if name not in MODELS:
        raise UserError(f"no model is named {name!r}: {nearest(name, MODELS)}")
    model, fixed = MODELS[name]
    taken = {"num_labels", "parent", "name", *fixed}
    return tuple(f.name for f in dataclasses.fields(model) if f.name not in taken)


def create_model(name: str, num_labels: int, **settings: Any) -> nn.Module:
    """The model `name` for `num_labels` classes.

    Called as `model.apply(variables, features, train=…)` with features [b, t, f] it
    gives logits [b, k]; its method `embed`, if any, gives embeddings [b, d]. The
    setting `genotype` is a Genotype, the name of a published one or the path of a saved
    one; `layers` are operations or, likewise, a path.

    Raises:
      UserError: unknown name or setting, or a setting that is missing or does not fit.
    """
    known = model_settings(name)
    if isinstance(settings.get("layers"), str) and "layers" in known:
        settings["layers"] = load_layers(
            settings["layers"], round_widths=bool(settings.get("round_widths"))
        )
    for setting in settings:
        if setting not in known:
            raise UserError(
                f"model {name!r} has no setting {setting!r}: {nearest(setting, known)}"
            )
        _check_range(name, setting, settings[setting])
    if "genotype" in known:
        if not settings.get("genotype"):
            raise UserError(
                f"model {name!r} needs the setting 'genotype': the name of a published "
                "network or the path of a genotype saved by a search."
            )
        if not isinstance(settings["genotype"], Genotype):
            settings["genotype"] = load_genotype(settings["genotype"])
    model, fixed = MODELS[name]
    return model(num_labels=num_labels, **fixed, **settings)


def _check_range(name: str, setting: str, value: Any) -> None:
    if setting in CHOICES and value not in CHOICES[setting]:
        raise UserError(
            f"setting {setting!r} of model {name!r} cannot be {value!r}: "
            f"{nearest(str(value), CHOICES[setting])}"
        )
    if setting not in RANGES:
        return
    expected, holds = RANGES[setting]
    if isinstance(value, (bool, str)) or value is None or not holds(value):
        raise UserError(
            f"setting {setting!r} of model {name!r} must be {expected}, got {value!r}."
        )
