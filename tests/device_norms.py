"""Networks on four fake devices that normalise their own rows; prints what came out.

    python -m device_norms PART …

Run by `test_batch_norm_of.py` in processes of their own, which have four devices. Each
part of the tests gives a line of JSON.
"""

import dataclasses
import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from network_values import QUICK, random_variables
from tiny_parts import tiny_config, tiny_parts

from configs import autokws, data_parameters, end_to_end_nas, pair_loss, tc_resnet
from kws_jax.data.corpus import SILENCE, UNKNOWN
from kws_jax.models.front_filter import filtered
from kws_jax.models.registry import MODELS, create_model, model_settings
from kws_jax.quantization import calibration
from kws_jax.quantization.network import Bits, QuantizedNetwork
from kws_jax.quantization.sites import find_sites
from kws_jax.search import proxyless
from kws_jax.search.architecture import init_architecture
from kws_jax.search.mbconv_space import MBConvSpace
from kws_jax.search.path_net import PathNet
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet
from kws_jax.stages import (
    dispatch,
    learner,
    networks,
    runner,
    search,
    train,
    training_run,
)
from kws_jax.training import sharding
from kws_jax.training.state import WEIGHTS

DEVICES, ROWS, LABELS = 4, 8, 4
QUANTIZED, MANY_BITS = "quantized", 16
SETTINGS = {
    "genotype": "autokws-noisydarts",
    "layers": ("E6K3", "E1K5", "SKIP", "E3K7", "SKIP", "E1K3"),
    "width": 0.25,
    "channels": 8,
    "hidden": 16,
    "dropout": 0.0,
}
Named = dict[str, tuple[nn.Module, tuple[Any, ...], str]]


class Norm(nn.Module):
    """A batch norm of features, and nothing else."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [b, t, f], normalised."""
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


def cases() -> Named:
    """Name -> network, its further arguments, and the method that is trained."""
    found: Named = {"norm": (Norm(), (), "__call__")}
    for name in MODELS:
        given = {k: v for k, v in SETTINGS.items() if k in model_settings(name)}
        method = "frame_logits" if name == "acoustic_dnn" else "__call__"
        found[name] = create_model(name, LABELS, **given), (), method
    small = create_model("tc_resnet8", LABELS, width=0.25, dropout=0.0)
    found["embeddings"] = small, (), "embed"
    found["quantized"] = small, (), QUANTIZED
    found["front filter"] = filtered(small, "dynamic_conv", 40), (), "__call__"
    space = SearchSpace(strides=(2, 1), channels=(4, 4), stem_channels=4)
    weights = tuple(jnp.linspace(0.1, 1.0, len(names)) for names in space.candidates)
    found["supernet"] = SuperNet(LABELS, space, dropout=0.0), (weights,), "__call__"
    paths = MBConvSpace((1, 3), (3,))
    alphas = init_architecture(jax.random.key(0), paths.candidates)
    path = np.array([1] * len(alphas), np.int32)
    gates = proxyless.binary_gates(alphas, path)
    found["one path"] = PathNet(LABELS, paths), (path, None), "__call__"
    found["gates"] = PathNet(LABELS, paths), (path, gates), "__call__"
    nested = PathNet(LABELS, MBConvSpace((1, 3), (3,), nested=True))
    found["nested gates"] = nested, (path, gates), "__call__"
    return found


def outputs(
    network: nn.Module,
    arguments: tuple[Any, ...],
    method: str,
    mesh: Mesh | None,
) -> Callable[..., Any]:
    """(variables, features, weights) -> logits, statistics, gradients, jitted.

    The gradients are of Σ weights · logits.
    """

    def total(variables: Any, more: Any, features: jax.Array, weights: Any) -> Any:
        logits, statistics = networks.infer_in_training(
            network,
            variables,
            features,
            *more,
            rngs={"dropout": jax.random.key(0), "noise": jax.random.key(1)},
            method=method,
            norm_mesh=mesh,
        )
        return (weights * logits).sum(), (logits, statistics)

    # Of a path with gates, the network's own variables are constants.
    by_gates = len(arguments) > 1 and arguments[1] is not None

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(variables: Any, features: jax.Array, weights: jax.Array) -> Any:
        def of(part: Any) -> Any:
            if by_gates:
                return total(variables, (arguments[0], part), features, weights)
            whole = {**variables, "params": part}
            return total(whole, arguments, features, weights)

        chosen = arguments[1] if by_gates else variables["params"]
        gradients, (logits, statistics) = jax.grad(of, has_aux=True)(chosen)
        return logits, statistics, gradients

    return run


def gap(one: Any, other: Any) -> float:
    """The largest difference of two trees, relative to the largest of their leaf."""

    def of(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))

    return max(jax.tree.leaves(jax.tree.map(of, one, other)), default=0.0)


def quantized(
    model: nn.Module, variables: Any, features: np.ndarray
) -> tuple[QuantizedNetwork, Any]:
    """The network with learned bits and its variables, trees for parameters.

    Of so many bits that a sum in another order, rounded otherwise, makes no difference.
    """
    sites = find_sites(model, variables, features[:1])
    stats = variables["batch_stats"]
    ranges = calibration.measure_ranges(
        model, sites, variables["params"], stats, [features]
    )
    signed = calibration.signs(ranges)
    bits = Bits(MANY_BITS, MANY_BITS, learned=True, most=MANY_BITS)
    network = QuantizedNetwork(model, sites, bits, signed)
    bounds = calibration.initial_bounds(ranges, signed, MANY_BITS)
    trees = {WEIGHTS: variables["params"], **network.initial_trees(bounds)}
    return network, {"params": trees, "batch_stats": stats}


def compared(
    network: nn.Module, arguments: tuple[Any, ...], method: str
) -> dict[str, Any]:
    """Gaps to separate batches, and to the whole batch, of one network."""
    rng = np.random.default_rng(0)
    # The level rises through the batch, so that statistics differ between devices.
    level = np.exp(np.arange(ROWS)).reshape(-1, 1, 1) / 100
    features = np.float32(rng.normal(size=(ROWS, 98, 40)) * level + level)
    variables = random_variables(network, features[:1], *arguments)
    if method == QUANTIZED:
        network, variables = quantized(network, variables, features)
        method = "__call__"
    alone = outputs(network, arguments, method, None)
    of_all, mesh = alone(variables, features, np.float32(1.0)), sharding.data_mesh()
    weights = np.float32(rng.normal(size=of_all[0].shape))
    found = outputs(network, arguments, method, mesh)(
        sharding.replicate(variables, mesh),
        sharding.shard({"x": features}, mesh)["x"],
        sharding.shard({"x": weights}, mesh)["x"],
    )
    shares = [
        alone(variables, x, w)
        for x, w in zip(np.split(features, DEVICES), np.split(weights, DEVICES))
    ]
    logits, statistics, gradients = zip(*shares)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *statistics)
    total = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *gradients)
    return {
        "logits": gap(found[0], np.concatenate(logits)),
        "statistics": gap(found[1], mean),
        "gradients": gap(found[2], total),
        "whole batch": gap(found[0], of_all[0]),
        "moved": gap(found[1], variables["batch_stats"]),
    }


def compared_networks(*names: str) -> dict[str, Any]:
    """`compared` of each of `cases`, or of those that are named."""
    return {name: compared(*cases()[name]) for name in names or cases()}


def literal() -> dict[str, float]:
    """Gaps of a batch norm to its formula over the rows of each device, in float64."""
    rng = np.random.default_rng(0)
    x = np.float32(
        rng.normal(3, 2, (ROWS, 5, 3)) * np.arange(1, ROWS + 1)[:, None, None]
    )
    variables = random_variables(Norm(), x)
    mesh = sharding.data_mesh()
    logits, statistics, _ = outputs(Norm(), (), "__call__", mesh)(
        sharding.replicate(variables, mesh),
        sharding.shard({"x": x}, mesh)["x"],
        np.float32(1.0),
    )
    norm = jax.tree.map(np.float64, variables)["params"]["BatchNorm_0"]
    old = jax.tree.map(np.float64, variables)["batch_stats"]["BatchNorm_0"]
    expected, means, variances = [], [], []
    for own in np.split(np.float64(x), DEVICES):
        mean, variance = own.mean((0, 1)), own.var((0, 1))
        normal = (own - mean) / np.sqrt(variance + 1e-5)
        expected.append(normal * norm["scale"] + norm["bias"])
        means.append(0.9 * old["mean"] + 0.1 * mean)
        variances.append(0.9 * old["var"] + 0.1 * variance)
    running = {"mean": np.mean(means, 0), "var": np.mean(variances, 0)}
    return {
        "outputs": gap(logits, np.concatenate(expected)),
        "running": gap(statistics["BatchNorm_0"], running),
    }


def draws() -> dict[str, bool]:
    """Whether devices that have the same clips drop out different entries."""
    network = create_model("tc_resnet8", LABELS, width=0.25, dropout=0.5)
    x = np.float32(np.random.default_rng(0).normal(size=(2, 98, 40)))
    rows, mesh = np.concatenate([x] * DEVICES), sharding.data_mesh()
    run = outputs(network, (), "__call__", mesh)
    logits, _, _ = run(
        sharding.replicate(random_variables(network, x), mesh),
        sharding.shard({"x": rows}, mesh)["x"],
        np.float32(1.0),
    )
    shares = np.split(np.asarray(logits), DEVICES)
    pairs = itertools.combinations(shares, 2)
    return {"differ": all(np.abs(a - b).max() > 1e-3 for a, b in pairs)}


def one_step() -> dict[str, float]:
    """Gaps of a step, made from a config, to SGD on the mean of separate gradients."""
    config = tiny_config(batch_norm_of="device")
    config.network.dropout = 0.0
    stage = config.stages[0]
    stage.optimizer.update(weight_decay=0.0, clip_norm=0.0, learning_rate=0.1)
    parts = tiny_parts(config)
    model = networks.create_network(parts, Path())
    plan = runner.plan_of(parts, 0, len(parts.task.train))
    made = learner.create_learner(parts, stage, model, plan)
    state = train.initial_state(parts, model, made.transformations)
    batch = next(parts.host_batches(parts.task.train, stage, 0))
    key = jax.random.key(0)
    new, metrics = jax.jit(made.step, compiler_options=QUICK)(
        sharding.replicate(state, parts.mesh), sharding.shard(batch, parts.mesh), key
    )
    loss_fn = learner.classification_loss(parts, stage, model)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def alone(share: Any) -> Any:
        def loss_of(weights: Any) -> Any:
            return loss_fn({WEIGHTS: weights}, state.batch_stats, share, key)

        return jax.value_and_grad(loss_of, has_aux=True)(state.trees[WEIGHTS])

    found = [
        alone(jax.tree.map(lambda leaf, i=i: np.split(leaf, DEVICES)[i], batch))
        for i in range(DEVICES)
    ]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *found)
    (loss, (_, statistics)), gradient = mean
    updates, _ = made.transformations[WEIGHTS].update(
        gradient, state.opt_state[WEIGHTS], state.trees[WEIGHTS]
    )
    moved = jax.tree.map(np.subtract, new.trees[WEIGHTS], state.trees[WEIGHTS])
    return {
        "loss": gap(metrics["loss"], loss),
        "updates": gap(moved, updates),
        "statistics": gap(new.batch_stats, statistics),
    }


class _Captured(Exception):
    """The arguments of a training that is not made."""


def stages() -> dict[str, list[int]]:
    """Kind of stage -> how often its step normalises own rows: not asked to, asked."""
    configs = {
        "train": tc_resnet.get_config("8"),
        "acoustic": data_parameters.get_config("acoustic_dnn"),
        "search": autokws.get_config("noisydarts"),
        "proxyless": end_to_end_nas.get_config(),
        "embed": pair_loss.get_config(),
    }
    search.create_space = lambda parts: SearchSpace(
        strides=(2, 1), channels=(4, 4), stem_channels=4
    )
    # Whose divisions are not counted.
    sharding.by_rows = lambda function, mesh, **told: function
    configs["proxyless"].unlock().search.update(expansions=(1, 3), kernels=(3,))
    # Nothing is computed, so that nothing need be compiled.
    networks.initial_variables = lambda model, key, *inputs: jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        networks.variable_shapes(model, *inputs),
    )
    with tempfile.TemporaryDirectory() as folder:
        return {name: _mapped(config, Path(folder)) for name, config in configs.items()}


def _mapped(config: Any, folder: Path) -> list[int]:
    config, found = config.unlock(), []
    config.data.rooms = ""
    config.stages = (config.stages[0],)
    stage = config.stages[0]
    if "warmup_epochs" in stage:
        stage.warmup_epochs = 0.0
    stage["tuples_per_batch" if stage.kind == "embed" else "batch_size"] = ROWS
    for config.batch_norm_of in ("global", "device"):
        parts = tiny_parts(config)
        # As the acoustic model wants them.
        parts = dataclasses.replace(parts, labels=("up", "down", UNKNOWN, SILENCE))

        def capture(
            parts: Any, index: int, folder: Path, state: Any, **told: Any
        ) -> Any:
            raise _Captured(parts, state, told["splits"], told["step_at"])

        training_run.run = capture
        try:
            dispatch.KINDS[stage.kind](parts, 0, folder)
        except _Captured as caught:
            parts, state, splits, step_at = caught.args
        batches = [next(parts.train_batches(split, stage, 0)) for split in splits]
        traced = jax.make_jaxpr(step_at(0))(state, *batches, jax.random.key(0))
        found.append(str(traced).count("shard_map["))
    return found


PARTS = {f.__name__: f for f in (compared_networks, literal, draws, one_step, stages)}

if __name__ == "__main__":
    assert len(jax.devices()) == DEVICES
    part, *names = sys.argv[1:]
    print(json.dumps(PARTS[part](*names)))
