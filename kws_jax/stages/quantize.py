"""Stage "quantize": a trained network goes on learning with few bits."""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from kws_jax import together
from kws_jax.errors import UserError
from kws_jax.models.counting import count_parameters
from kws_jax.parts import Parts, Setup
from kws_jax.quantization import calibration, learned
from kws_jax.quantization.network import (
    BITS,
    BOUNDS,
    Bits,
    Kind,
    QuantizedNetwork,
)
from kws_jax.quantization.sites import Sites, find_sites
from kws_jax.stages import networks, runner, train, training_run
from kws_jax.stages.learner import classification_loss
from kws_jax.stages.validation import objective_of
from kws_jax.training.checkpoints import saving, write_json
from kws_jax.training.optimizers import create_optimizer, keep_within
from kws_jax.training.state import (
    WEIGHTS,
    TrainState,
    create_train_state,
    variables_of,
)
from kws_jax.training.step import LossFn, make_train_step
from kws_jax.workdirs import read_json

PyTree = Any
RANGES_FILE = "activation_ranges.json"
# Of before: batch norms were folded first, and kernels quantised with them inside.
_FORMER_RANGES_FILE = "ranges.json"
_BITS_ROWS: dict[Kind, str] = {
    "weights": "weight_bits",
    "activations": "activation_bits",
}


def check(parts: Parts, index: int, folder: Path) -> None:
    """Checks stage `index` before anything is trained; tells what it leaves out.

    Of a network that a search finds, one with every layer that it can have is looked
    at.

    Raises:
      UserError: no stage of kind 'train' comes before it; a layer cannot be quantised;
        keep_float names none.
    """
    stages = parts.config.stages
    if index == 0 or stages[index - 1].kind != "train":
        raise UserError(
            f"config.stages[{index}] is of kind 'quantize': it goes on from a trained "
            "network, so put a stage of kind 'train' right before it."
        )
    if networks.finds_genotype(parts):
        model = networks.stand_in(parts)
    else:
        model = networks.create_network(parts, folder)
    _sites(parts, stages[index], model, whole_space=True)
    dtype = parts.config.compute_dtype
    if dtype != "float32" and together.is_first():
        print(
            f"note: stage {stages[index].name!r} is computed in float32, not in "
            f"config.compute_dtype = {dtype!r}, which would round once more what is "
            "quantised.",
            file=sys.stderr,
        )


def run(parts: Parts, index: int, folder: Path) -> list[dict[str, Any]]:
    """Trains the quantised network; returns rows for results.json.

    It starts from the best state of the stage before, with ranges of activations that
    are measured on some of its batches, and computes in float32, since bfloat16 would
    round once more. Batch norms go on as in training, and their running statistics
    follow the quantised network.
    """
    stage = parts.config.stages[index]
    model = networks.create_network(parts, folder)
    before = train.best_state(parts, index - 1, folder, model)
    sites = _sites(parts, stage, model)
    ranges = _ranges(parts, index, folder, model, sites, before)
    signed = calibration.signs(ranges)
    network = QuantizedNetwork(model, sites, Bits(**stage.bits.to_dict()), signed)
    bounds = calibration.initial_bounds(ranges, signed, stage.bits.activations)
    _tell_unfolded(sites)

    plan = runner.plan_of(parts, index, len(parts.task.train))
    transformations, schedule = transformations_of(
        stage, plan.total_steps, steps_per_epoch=plan.steps_per_epoch
    )
    trees = {**before.trees, **network.initial_trees(bounds)}
    state = create_train_state(
        trees,
        before.batch_stats,
        {label: transformations[label] for label in trees},
    )
    step = make_train_step(
        quantized_loss(parts, stage, network), transformations, trained=tuple(trees)
    )
    trained = training_run.run(
        parts,
        index,
        folder,
        state,
        plan=plan,
        splits=[parts.task.train],
        step_at=lambda number: step,
        logits_of=lambda state, features: network.infer(
            state.trees, state.batch_stats, features
        ),
        schedule=schedule,
        # With learned bits the most accurate network is the one that has learned
        # nothing yet: what is minimised, on the validation clips, decides there.
        score=(
            lambda state, measures: (
                -float(measures["loss"] + _penalty(stage, network, state.trees))
            )
        )
        if network.bits.learned
        else None,
    )
    best = runner.best_state(parts, index, folder, trained.state, finished=False)
    return trained.rows(
        {
            **networks.size_of(parts, model, variables_of(best)),
            **trained.speed,
            **_bit_measures(network, jax.device_get(best.trees)),
        }
    )


def quantized_loss(
    parts: Parts, stage: ConfigDict, network: QuantizedNetwork
) -> LossFn:
    """The loss of training on quantised logits, as a LossFn.

    Where bits are learned, with λ_w·B_w + λ_a·B_a: the mean bits of a weight and of an
    activation (Peter et al., arXiv 2104.06666).
    """

    def infer(
        trees: dict[str, PyTree],
        batch_stats: PyTree,
        features: jax.Array,
        rngs: dict[str, jax.Array],
    ) -> tuple[jax.Array, PyTree]:
        return networks.infer_in_training(
            network,
            {"params": trees, "batch_stats": batch_stats},
            features,
            rngs=rngs,
            norm_mesh=networks.mesh_of_norms(parts),
        )

    classify = classification_loss(parts, stage, network.model, infer=infer)
    if not network.bits.learned:
        return classify

    def loss_fn(
        trees: dict[str, PyTree], batch_stats: PyTree, batch: Any, key: jax.Array
    ) -> Any:
        loss, (measures, batch_stats) = classify(trees, batch_stats, batch, key)
        loss += _penalty(stage, network, trees)
        bits = {
            name: network.mean_bits(trees, kind) for kind, name in _BITS_ROWS.items()
        }
        return loss, ({**measures, "loss": loss, **bits}, batch_stats)

    return loss_fn


def restore(setup: Setup, index: int, folder: Path) -> networks.Network:
    """The quantised network of a finished stage, at its best step on validation."""
    network, state = restore_quantized(setup, index, folder)
    probabilities_of = objective_of(setup.config.stages[index]).probabilities

    @jax.jit
    def probabilities(trees: PyTree, batch_stats: PyTree, audio: jax.Array) -> Any:
        logits = network.infer(trees, batch_stats, setup.features(audio))
        return probabilities_of(logits)

    @jax.jit
    def embeddings(trees: PyTree, batch_stats: PyTree, audio: jax.Array) -> Any:
        features = setup.features(audio)
        return network.infer(trees, batch_stats, features, method="embed")

    def of_audio(function: Callable[..., Any]) -> Callable[[Any], jax.Array]:
        return lambda audio: function(state.trees, state.batch_stats, audio)

    return networks.Network(
        network.model,
        variables_of(state),
        setup.labels,
        of_audio(probabilities),
        of_audio(embeddings) if networks.embeds(network.model) else None,
    )


def restore_quantized(
    setup: Setup, index: int, folder: Path
) -> tuple[QuantizedNetwork, TrainState]:
    """The network of a finished stage as `quantization.integers` takes it.

    Raises:
      UserError: where the stage has not been run to its end.
    """
    stage = setup.config.stages[index]
    model = networks.create_network(setup, folder)
    sites = _sites(setup, stage, model)
    network = QuantizedNetwork(model, sites, Bits(**stage.bits.to_dict()), {})
    like = train.state_like(setup, model)
    more = network.initial_trees(dict.fromkeys(sites.activation_counts, 1.0))
    like = like.replace(trees={**like.trees, **more})
    state = runner.best_state(setup, index, folder, like)
    ranges = read_json(_ranges_file(setup, index, folder))
    return dataclasses.replace(network, signed=calibration.signs(ranges)), state


def _sites(
    setup: Setup, stage: ConfigDict, model: nn.Module, *, whole_space: bool = False
) -> Sites:
    """What is quantised; a found network may lack layers of its whole space."""
    may_lack = networks.finds_genotype(setup) and not whole_space
    features = networks.sample_features(setup)
    shapes = networks.variable_shapes(model, features)
    keep = stage.keep_float
    return find_sites(model, shapes, features, keep_float=keep, may_lack=may_lack)


def _ranges_file(setup: Setup, index: int, folder: Path) -> Path:
    stage = runner.stage_folder(setup, index, folder)
    if together.agreed(together.is_first() and (stage / _FORMER_RANGES_FILE).exists()):
        raise UserError(
            f"{stage} was quantised by an earlier version, with batch norms inside of "
            "what was quantised; this one would make another network of it. Run its "
            "experiment again in a new workdir."
        )
    return stage / RANGES_FILE


def _ranges(
    parts: Parts,
    index: int,
    folder: Path,
    model: nn.Module,
    sites: Sites,
    state: TrainState,
) -> calibration.Ranges:
    """Ranges of activations, measured once: a stage that is taken up keeps its own."""
    path, stage = _ranges_file(parts, index, folder), parts.config.stages[index]
    kept = together.is_first() and path.exists()
    ranges = together.agreed(read_json(path) if kept else None)
    if ranges is not None:
        return ranges
    batches = parts.train_batches(parts.task.train, stage, 0)
    features = jax.jit(parts.features)
    ranges = calibration.measure_ranges(
        model,
        sites,
        state.trees[WEIGHTS],
        state.batch_stats,
        (
            features(batch["audio"])
            for batch in itertools.islice(batches, stage.calibration_batches)
        ),
    )
    if together.is_first():
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, ranges)
    return together.agreed(ranges)


def _tell_unfolded(sites: Sites) -> None:
    if sites.unfolded and together.is_first():
        print(
            "Batch norms that stay in float, as no quantised layer stands right before "
            f"them: {', '.join(sites.unfolded)}"
        )


def transformations_of(
    stage: ConfigDict, total_steps: int, *, steps_per_epoch: float
) -> tuple[dict[str, optax.GradientTransformation], optax.Schedule]:
    """Label -> optimiser of weights, ranges and bits; the learning rate of weights."""
    create = functools.partial(
        create_optimizer, total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    weights, schedule = create(stage.optimizer)
    bounds, _ = create(stage.range_optimizer)
    bits, _ = create(stage.bits_optimizer)
    largest = learned.largest_offset(stage.bits.most)
    bits = optax.chain(bits, keep_within(-largest, largest))
    return {WEIGHTS: weights, BOUNDS: bounds, BITS: bits}, schedule


def _penalty(
    stage: ConfigDict, network: QuantizedNetwork, trees: Mapping[str, PyTree]
) -> Any:
    """λ_w·B_w + λ_a·B_a."""
    return stage.weight_bits_penalty * network.mean_bits(
        trees, "weights"
    ) + stage.activation_bits_penalty * network.mean_bits(trees, "activations")


def _bit_measures(
    network: QuantizedNetwork, trees: Mapping[str, PyTree]
) -> dict[str, Any]:
    """Bytes of the weights, and bits in the mean and by layer."""
    in_float = _weights_in_float(network, trees)
    measures: dict[str, Any] = {
        "weight_bytes": _weight_bytes(network, trees, in_float),
        "weights_in_float": in_float,
        "norms_unfolded": len(network.sites.unfolded),
    }
    for kind, name in _BITS_ROWS.items():
        measures[name] = network.mean_bits(trees, kind)
        bits = network.bits_of(trees, kind)
        measures |= {f"{name}/{layer}": number for layer, number in bits.items()}
    return measures


def _weights_in_float(network: QuantizedNetwork, trees: Mapping[str, PyTree]) -> int:
    """Values of the kernels that are kept in float, which no mean of bits holds."""
    kernels = [leaf for leaf in jax.tree.leaves(trees[WEIGHTS]) if leaf.ndim > 1]
    return count_parameters(kernels) - sum(network.sites.weight_counts.values())


def _weight_bytes(
    network: QuantizedNetwork, trees: Mapping[str, PyTree], in_float: int
) -> float:
    """Bytes of all kernels at their bits; those kept in float have 32."""
    counts, bits = network.sites.weight_counts, network.bits_of(trees, "weights")
    return float(4 * in_float + sum(counts[n] * bits[n] for n in counts) / 8)
