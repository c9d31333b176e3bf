"""Runs a stage once, by its kind, and remembers that it is done."""

from pathlib import Path
from typing import Any

from kws_jax import together
from kws_jax.data.conditions import Condition
from kws_jax.data.mixing import check_condition
from kws_jax.errors import UserError, told_with
from kws_jax.parts import Parts, Setup
from kws_jax.stage_fields import FINDS_GENOTYPE
from kws_jax.stages import (
    acoustic,
    data_parameters,
    draw,
    embed,
    embeddings,
    filters,
    network_parts,
    networks,
    proxyless,
    proxyless_space,
    quantize,
    runner,
    search,
    train,
)
from kws_jax.training import sharding
from kws_jax.training.checkpoints import saving, write_json
from kws_jax.training.optimizers import create_optimizer
from kws_jax.workdirs import read_json

KINDS = {
    "train": train.run,
    "search": search.run,
    "proxyless_search": proxyless.run,
    "random_search": draw.run,
    "embed": embed.run,
    "quantize": quantize.run,
}
# Kinds of stages that end with a network to be tested.
_RESTORE = {"train": train.restore, "quantize": quantize.restore}
_OPTIMIZERS = (
    "optimizer",
    "architecture_optimizer",
    "range_optimizer",
    "bits_optimizer",
)
# Kinds of stages of one search method alone.
_METHOD_OF = {"proxyless_search": "proxyless", "random_search": "random"}


def check(parts: Parts, folder: Path) -> None:
    """Raises UserError for stages that cannot run, before anything is trained."""
    stages = parts.config.stages
    if stages[-1].kind not in _RESTORE:
        raise UserError(
            f"The last of config.stages is of kind {stages[-1].kind!r}; it must be of "
            "kind 'train' or 'quantize', since that network is tested."
        )
    check_condition(Condition(snr_db=tuple(parts.config.evaluation.snr_db)))
    filters.check(parts)
    _check_method(parts)
    for index, stage in enumerate(stages):
        if stage.kind == "proxyless_search" or draw.draws_layers(parts, stage):
            proxyless_space.check(parts, stage.kind)
            if stage.kind == "proxyless_search" and networks.finds_genotype(parts):
                proxyless.check(parts, index)
        elif stage.kind in FINDS_GENOTYPE:
            search.create_space(parts)
        if stage.kind == "search":
            search.create_method(parts)
            if networks.finds_genotype(parts):
                search.check(parts, index)
        if "condition" in stage:
            with told_with(f"config.stages[{index}].condition"):
                parts.recipe(parts.task.train, stage)
        if stage.kind == "embed":
            embed.check(parts, stage)
        if "batch_size" in stage:
            sharding.check_batch_size(stage.batch_size, parts.mesh)
            parts.selection(parts.task.train, stage)
        for field in _OPTIMIZERS:
            if field in stage:
                create_optimizer(
                    stage[field],
                    total_steps=1,
                    steps_per_epoch=1.0,
                    where=f"config.stages[{index}].{field}",
                )
        if stage.kind == "quantize":
            quantize.check(parts, index, folder)
    acoustic.check(parts)
    data_parameters.check(parts, folder)
    if parts.config.data.on_device:
        parts.check_room()
    finds = any(stage.kind in FINDS_GENOTYPE for stage in stages)
    if finds and networks.finds_genotype(parts):
        model = networks.stand_in(parts)
    else:
        model = networks.create_network(parts, folder)
    network_parts.check(parts, model)
    embeddings.check(parts.config, model)
    for index, stage in enumerate(stages):
        if stage.kind == "train":
            with told_with(f"config.stages[{index}]"):
                train.check(parts, stage)


def _check_method(parts: Parts) -> None:
    """Refuses a config.search.method that the stages do not use, but results name."""
    kinds = {stage.kind for stage in parts.config.stages}
    told = {kind: name for kind, name in _METHOD_OF.items() if kind in kinds}
    for kind, name in told.items():
        if parts.config.search.method != name:
            raise UserError(
                f"config.search.method = {parts.config.search.method!r}, but the "
                f"stages of kind {kind!r} are by {name!r}: choose the method by the "
                "word after the colon of --config, which chooses the stages too."
            )


def run(parts: Parts, index: int, folder: Path) -> list[dict[str, Any]]:
    """Runs stage `index`, unless it is done; returns its rows for results.json."""
    stage = parts.config.stages[index]
    done = runner.stage_folder(parts, index, folder) / runner.DONE_FILE
    here = together.is_first() and done.exists()
    rows = together.agreed(read_json(done) if here else None)
    if rows is not None:
        return rows
    if stage.kind in FINDS_GENOTYPE and not networks.finds_genotype(parts):
        print(
            f"Stage {stage.name!r} left out: "
            f"config.network.{networks.found_field(parts)} names the network"
        )
        return []
    rows = KINDS[stage.kind](parts, index, folder)
    if together.is_first():
        with saving(done):
            done.parent.mkdir(parents=True, exist_ok=True)
        write_json(done, rows)
    # The others wait here for all that process 0 has written.
    return together.agreed(rows)


def finished_network(setup: Setup, folder: Path) -> networks.Network:
    """The network of the last stage, with its best weights.

    Raises:
      UserError: where the stage has not been run to its end.
    """
    last = runner.last_finished(setup, folder)
    return _RESTORE[setup.config.stages[last].kind](setup, last, folder)


def float_network(setup: Setup, folder: Path) -> networks.Network | None:
    """The network that the last stage has quantised, as it was before; else None.

    Raises:
      UserError: where the stage has not been run to its end.
    """
    last = runner.last_finished(setup, folder)
    if setup.config.stages[last].kind != "quantize":
        return None
    return _RESTORE[setup.config.stages[last - 1].kind](setup, last - 1, folder)
