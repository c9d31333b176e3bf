"""What stages ask of a network beside its logits: embeddings, and a head to train."""

import flax.linen as nn

from kws_jax.errors import UserError
from kws_jax.models import acoustic_dnn
from kws_jax.parts import Setup
from kws_jax.stages import networks
from kws_jax.training.optimizers import has_head


def check(setup: Setup, model: nn.Module) -> None:
    """Raises UserError where `model`, that of the config, lacks what a stage needs."""
    name = setup.config.network.name
    for index, stage in enumerate(setup.config.stages):
        where = f"config.stages[{index}]"
        if stage.kind == "embed":
            _check_embeddings(name, model, f"{where}.kind = 'embed'")
        if stage.get("trained_part", "all") == "head":
            # Its frames are no embeddings of clips; the stage runs all of it.
            if name != acoustic_dnn.NETWORK:
                _check_embeddings(name, model, f"{where}.trained_part = 'head'")
            _check_head(setup, model, f"{where}.trained_part = 'head'")


def _check_embeddings(name: str, model: nn.Module, asked: str) -> None:
    if not networks.embeds(model):
        raise UserError(
            f"{asked} asks for the embeddings of clips, and the network {name!r} has "
            "none: choose another one, or give its class a method "
            "`embed(features, *, train)`."
        )


def _check_head(setup: Setup, model: nn.Module, asked: str) -> None:
    shapes = networks.variable_shapes(model, networks.sample_features(setup))
    params, _ = networks.split_variables(shapes)
    if not has_head(params):
        raise UserError(
            f"{asked} trains the submodule `head` alone, and the network "
            f"{setup.config.network.name!r} has none: choose another one, say 'all', "
            "or give its last layer that name."
        )
