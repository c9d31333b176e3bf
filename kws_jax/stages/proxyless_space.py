"""What a ProxylessNAS search chooses among: the space, its costs and its limits."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from kws_jax.errors import UserError, nearest
from kws_jax.models import counting
from kws_jax.models.mbconv import MBConvNet, load_layers
from kws_jax.parts import Parts
from kws_jax.search import limits
from kws_jax.search.architecture import Architecture
from kws_jax.search.limits import Limits
from kws_jax.search.mbconv_space import Cost, MBConvSpace
from kws_jax.stages import networks

KIND = "proxyless_search"
# Which clips the architecture is trained on.
ARCHITECTURE_DATA = ("validation", "half")


def check(parts: Parts, kind: str = KIND) -> None:
    """Checks a search, or a random draw, whose stage is of this `kind`.

    Raises:
      UserError: where it cannot run, or its limits are met by nothing.
    """
    config, search = parts.config, parts.config.search
    if config.network.name != "mbconv":
        raise UserError(
            f"A stage of kind {kind!r} searches the network 'mbconv'; config.network."
            f"name = {config.network.name!r}."
        )
    if config.front_filter.name != "none":
        raise UserError(
            f"A stage of kind {kind!r} searches a network without a front filter: set "
            "config.front_filter.name to 'none'."
        )
    if search.architecture_data not in ARCHITECTURE_DATA:
        raise UserError(
            f"config.search.architecture_data = {search.architecture_data!r} is "
            f"unknown; {nearest(search.architecture_data, ARCHITECTURE_DATA)}"
        )
    trains = kind == KIND and networks.finds_genotype(parts)
    on_validation = search.architecture_data == "validation"
    if trains and config.data.on_device and on_validation:
        raise UserError(
            "config.data.on_device keeps the training clips alone: set config.search."
            "architecture_data to 'half', or data.on_device to False."
        )
    if search.reference_macs <= 1:
        raise UserError(
            f"config.search.reference_macs = {search.reference_macs:g}: give more "
            "than 1."
        )
    stages = [stage for stage in config.stages if stage.kind == KIND]
    if any(stage.architecture_every < 0 for stage in stages):
        raise UserError(f"architecture_every of a stage {KIND!r}: give 0 or more.")
    if stages and not stages[-1].architecture_every:
        raise UserError(
            f"The last stage of kind {KIND!r} has architecture_every = 0, which never "
            "trains the architecture: give at least 1."
        )
    space = create_space(parts)
    costs, bounds = costs_of(parts, space)
    even = [np.zeros(len(names)) for names in space.candidates]
    if limits.most_probable(even, costs, bounds) is None:
        macs, parameters, most = limits.extremes(costs, bounds)
        raise UserError(
            f"No network of the space is within config.search.max_macs = "
            f"{bounds.max_macs:,}, max_parameters = {bounds.max_parameters:,} and "
            f"min_parameters = {bounds.min_parameters:,} (0 is no limit): the fewest "
            f"multiply-accumulates are {macs:,}, the fewest parameters "
            f"{parameters:,}, the most {most:,}. Widen the limits, or take fewer "
            "filters."
        )
    if config.network.layers:
        _check_given(parts, bounds)


def _check_given(parts: Parts, bounds: Limits) -> None:
    """Raises UserError where the layers that the config names exceed the limits."""
    network = parts.config.network
    layers = load_layers(network.layers, round_widths=network.round_widths)
    macs, parameters = _size_of(parts, layers)
    searched = (macs - bounds.fixed_macs, parameters - bounds.fixed_parameters)
    if not bounds.allow(np.array(searched)):
        raise UserError(
            f"config.network.layers = {network.layers!r} has {parameters:,} parameters "
            f"and {macs:,} multiply-accumulates, not within config.search."
            f"max_parameters = {bounds.max_parameters:,}, max_macs = "
            f"{bounds.max_macs:,} and min_parameters = {bounds.min_parameters:,} (0 is "
            "no limit). Widen them, or name other layers."
        )


def create_space(parts: Parts) -> MBConvSpace:
    """The search space of the config.

    Raises:
      UserError: for expansions or kernels that the network does not have.
    """
    search = parts.config.search
    return MBConvSpace(
        tuple(search.expansions),
        tuple(search.kernels),
        parts.config.network.round_widths,
        # experiments of before the field shared nothing
        search.get("nested", False),
    )


def costs_of(parts: Parts, space: MBConvSpace) -> tuple[tuple[Cost, ...], Limits]:
    """What the candidates cost, and the limits with what is not searched in them.

    The front end's own filters are part of the network where they are learned.
    """
    frames, features = parts.frontend.shape
    features = parts.frontend.settings.get("num_filters", features)
    costs = space.costs((features, frames))
    macs, parameters = _size_of(parts, [names[0] for names in space.candidates])
    search = parts.config.search
    return costs, Limits(
        max_macs=search.max_macs,
        max_parameters=search.max_parameters,
        # experiments of before the field had none
        min_parameters=search.get("min_parameters", 0),
        fixed_macs=macs - sum(int(cost.macs[0]) for cost in costs),
        fixed_parameters=parameters - sum(int(cost.parameters[0]) for cost in costs),
    )


def _size_of(parts: Parts, layers: Sequence[str]) -> tuple[int, int]:
    """Multiply-accumulates and parameters of the network with these layers."""
    widths = parts.config.network.round_widths
    plain = MBConvNet(len(parts.labels), tuple(layers), widths)
    model = networks.behind_front(parts, plain)
    clip = networks.sample_features(parts)
    shapes = networks.variable_shapes(model, clip)
    macs = counting.count_macs(functools.partial(networks.infer, model), shapes, clip)
    return macs, counting.count_parameters(shapes["params"])


def random_layers(parts: Parts) -> tuple[str, ...]:
    """Layers drawn uniformly from all networks within the limits, by config.seed."""
    space = create_space(parts)
    costs, bounds = costs_of(parts, space)
    choice = limits.draw(costs, bounds, np.random.default_rng(parts.config.seed))
    assert choice is not None, "checked before training"
    return space.layers(choice)


def derive(
    architecture: Architecture,
    space: MBConvSpace,
    costs: tuple[Cost, ...],
    bounds: Limits,
) -> tuple[str, ...]:
    """The most probable layers within the limits: without any, each layer's argmax."""
    logs = [np.asarray(jax.nn.log_softmax(alphas)) for alphas in architecture]
    choice = limits.most_probable(logs, costs, bounds)
    assert choice is not None, "checked before training"
    return space.layers(choice)
