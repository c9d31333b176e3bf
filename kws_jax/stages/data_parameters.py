"""Data parameters of a training stage: made from its config, checked, recorded."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from kws_jax import together
from kws_jax.errors import UserError, nearest
from kws_jax.models import acoustic_dnn
from kws_jax.objectives import data_parameters as objective
from kws_jax.parts import Parts
from kws_jax.stages import runner
from kws_jax.stages.data_parameter_records import (
    LOG_FILE,
    epoch_measures,
    write_summary,
)
from kws_jax.training.checkpoints import saving, write_json
from kws_jax.training.logs import JsonLines
from kws_jax.training.loop import StagePlan
from kws_jax.training.optimizers import keep_within
from kws_jax.training.sparse_momentum import sparse_momentum
from kws_jax.training.state import DATA_PARAMETERS, TrainState
from kws_jax.workdirs import read_json

PyTree = Any
NONE = "none"
_FACTS_FILE = "data_parameters.json"
_RANGES = {
    "class_learning_rate": (0.0, math.inf),
    "instance_learning_rate": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "class_decay": (0.0, math.inf),
    "instance_decay": (0.0, math.inf),
    "joint_decay": (0.0, math.inf),
}


@dataclasses.dataclass(frozen=True)
class StageTable:
    """The data parameters of one training stage.

    Attributes:
      parts: the data; row n of the table is clip n of its training split.
      stage: the stage, with its `data_parameters`.
      folder: the workdir.
      classes: names of what the class parameters belong to; the labels' where empty.
    """

    parts: Parts
    stage: ConfigDict
    folder: Path
    classes: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of what the class parameters belong to."""
        return self.classes or self.parts.labels

    @property
    def settings(self) -> ConfigDict:
        """The stage's `data_parameters`."""
        return self.stage.data_parameters

    def trees(self) -> dict[str, PyTree]:
        """The tree that the stage's state has beside the weights, at its start."""
        settings, joint = self.settings, self.settings.mode == objective.JOINT
        table = objective.create_table(
            settings.mode,
            labels=len(self.class_names),
            clips=len(self.parts.task.train),
            variants=_variants(settings),
            class_initial=settings.class_initial,
            instance_initial=settings.instance_initial or (0.001 if joint else 1.0),
        )
        return {DATA_PARAMETERS: table}

    def transformation(self) -> optax.GradientTransformation:
        """Sparse momentum at each kind's own rate, then the clamp on ln σ."""
        rates = {
            kind: self.settings[f"{kind}_learning_rate"]
            for kind in self.trees()[DATA_PARAMETERS]
        }
        bound = math.log(self.settings.clamp)
        return optax.chain(
            sparse_momentum(rates, self.settings.momentum), keep_within(-bound, bound)
        )

    def scale(
        self,
        trees: Mapping[str, PyTree],
        logits: jax.Array,
        batch: Mapping[str, jax.Array],
    ) -> jax.Array:
        """Logits [b, k] divided by the σ* of each example of a batch.

        Raises:
          UserError: for labels that are mixtures.
        """
        objective.require_one_label(batch["label"])
        sigma = objective.temperatures(trees[DATA_PARAMETERS], *self._places(batch))
        return objective.scale(logits, sigma)

    def penalty(
        self, trees: Mapping[str, PyTree], batch: Mapping[str, jax.Array]
    ) -> jax.Array:
        """The regulariser of a batch, to be added to its loss."""
        return objective.penalty(
            trees[DATA_PARAMETERS],
            *self._places(batch),
            batch["mask"],
            class_decay=self.settings.class_decay,
            instance_decay=self.settings.instance_decay,
            joint_decay=self.settings.joint_decay,
        )

    def _places(
        self, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        variant = objective.variants_of(
            batch["noise_level"], self.settings.snr_edges_db
        )
        return batch["label"], batch["index"], variant

    def hooks(self, plan: StagePlan) -> dict[str, Any]:
        """What `runner.run_stage` takes to log the parameters at each validation."""
        log = JsonLines(self.folder / LOG_FILE)
        return {
            "logs": (log,),
            "after_validation": functools.partial(self._log, log, plan),
        }

    def _log(
        self, log: JsonLines, plan: StagePlan, step: int, state: TrainState
    ) -> None:
        if not together.is_first():
            return
        table = jax.device_get(state.trees[DATA_PARAMETERS])
        first = max(0, step - math.ceil(plan.steps_per_epoch))
        index, level = self._drawn(range(first, step))
        measures = epoch_measures(
            self.parts, self.settings, self.class_names, table, index, level
        )
        log.append(
            stage=plan.name, step=step, epoch=step / plan.steps_per_epoch, **measures
        )

    def _drawn(self, steps: range) -> tuple[np.ndarray, np.ndarray]:
        """Index and noise level of all examples of these steps.

        They are drawn again, as they are a function of the step: so the log after a
        restart is that of an undisturbed run.
        """
        train = self.parts.task.train
        recipe = self.parts.recipe(train, self.stage)
        select = self.parts.selection(train, self.stage, whole=True)
        inputs = [recipe.inputs(select(step)) for step in steps]
        index, level = (
            np.concatenate([one[name] for one in inputs])
            for name in ("index", "noise_level")
        )
        objective.check_index(index, len(train))
        return index, level

    def write_summary(self, state: TrainState) -> None:
        """Records the last values, and the clips with the largest σ to listen to."""
        if not together.is_first():
            return
        table = jax.device_get(state.trees[DATA_PARAMETERS])
        start = self.trees()[DATA_PARAMETERS]
        write_summary(
            self.parts, self.stage, self.folder, self.class_names, table, start
        )

    def facts(self) -> dict[str, Any]:
        """What a saved table must agree with to be taken up again."""
        train = self.parts.task.train
        digest = hashlib.sha256("\n".join(train.names.tolist()).encode())
        digest.update(np.asarray(train.labels, "<i4").tobytes())
        return {
            "clips": len(train),
            "variants": _variants(self.settings),
            "labels": list(self.class_names),
            "digest": digest.hexdigest(),
        }


def create_stage_table(parts: Parts, index: int, folder: Path) -> StageTable | None:
    """The data parameters of stage `index`, None where its config has none.

    Raises:
      UserError: where the stage has saved those of other clips.
    """
    table = stage_table(parts, index, folder)
    if table is None:
        return None
    _check_facts(table, index)
    if together.is_first():
        where = runner.stage_folder(parts, index, folder)
        with saving(where):
            where.mkdir(parents=True, exist_ok=True)
        write_json(where / _FACTS_FILE, table.facts())
    return table


def stage_table(parts: Parts, index: int, folder: Path) -> StageTable | None:
    """The same, of a stage that another begins after; nothing is checked or kept."""
    stage = parts.config.stages[index]
    return _table_of(parts, stage, folder) if _wants_table(stage) else None


def check(parts: Parts, folder: Path) -> None:
    """Raises UserError for data parameters that cannot be trained or taken up again."""
    for index, stage in enumerate(parts.config.stages):
        table = stage_table(parts, index, folder)
        if table is None:
            continue
        _check_settings(stage.data_parameters, f"config.stages[{index}]")
        table.trees()
        _check_facts(table, index)


def _table_of(parts: Parts, stage: ConfigDict, folder: Path) -> StageTable:
    network = parts.config.network
    classes: tuple[str, ...] = ()
    if network.name == acoustic_dnn.NETWORK:
        classes = acoustic_dnn.state_names(parts.labels, network.states)
    return StageTable(parts, stage, folder, classes)


def _wants_table(stage: ConfigDict) -> bool:
    return "data_parameters" in stage and stage.data_parameters.mode != NONE


def _check_settings(settings: ConfigDict, where: str) -> None:
    where += ".data_parameters"
    modes = (NONE, *objective.MODES)
    if settings.mode not in modes:
        raise UserError(
            f"{where}.mode = {settings.mode!r} is unknown; "
            f"{nearest(settings.mode, modes)}"
        )
    for field, (low, high) in _RANGES.items():
        if not low <= settings[field] < high:
            raise UserError(
                f"{where}.{field} = {settings[field]}: give a number of at least "
                f"{low:g}" + (f" and below {high:g}." if high < math.inf else ".")
            )
    if not 1 < settings.clamp < math.inf:
        raise UserError(
            f"{where}.clamp = {settings.clamp}: give a number above 1; temperatures "
            "are kept between its inverse and itself."
        )
    edges = list(settings.snr_edges_db)
    if edges != sorted(set(edges)):
        raise UserError(
            f"{where}.snr_edges_db = {tuple(edges)}: give SNRs in dB, each above the "
            "one before, or () for one entry for all noise."
        )


def _check_facts(table: StageTable, index: int) -> None:
    where = runner.stage_folder(table.parts, index, table.folder) / _FACTS_FILE
    if not where.exists():
        return
    stored, here = read_json(where), table.facts()
    if stored != here:
        sizes = (_sizes(stored), _sizes(here))
        other = "other clips or labels" if sizes[0] == sizes[1] else sizes[1]
        raise UserError(
            f"{where.parent} holds data parameters of {sizes[0]}; this experiment has "
            f"{other}. Choose another --workdir, or restore the config and the data "
            "that it was started with."
        )


def _sizes(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['clips']} clips in {facts['variants']} variants and "
        f"{len(facts['labels'])} labels"
    )


def _variants(settings: ConfigDict) -> int:
    """Clean, and what the edges make of noise."""
    return 2 + len(settings.snr_edges_db)
