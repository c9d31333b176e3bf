"""A stage "train" of several seeds at once: one program trains all their networks.

The states of the seeds are stacked, a step is that of one seed under `jax.vmap`, and
all see the same batches; weights, dropout and masks are each seed's own. Each seed's
folder ends with the checkpoints, log lines and rows that it would have left alone; its
seconds are its share of those of all.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from kws_jax import config as configs
from kws_jax import together
from kws_jax.errors import UserError
from kws_jax.models import fusion
from kws_jax.parts import Parts
from kws_jax.stages import feeding, networks, runner, train, training_run, validation
from kws_jax.stages.epochs import temperature_epochs, told_of_epochs
from kws_jax.stages.learner import create_learner
from kws_jax.stages.stacked_seeds import (
    EachHighest,
    Member,
    SeedCheckpoints,
    of_each,
    of_member,
    stacked,
    step_of_each,
    told_of_each,
)
from kws_jax.training import loop, sharding
from kws_jax.training.checkpoints import COMPLETE_FILE, TO_GO_ON, saving, write_json
from kws_jax.training.finiteness import NotFiniteError
from kws_jax.training.logs import JsonLines
from kws_jax.training.optimizers import updates_made
from kws_jax.training.state import WEIGHTS, variables_of
from kws_jax.workdirs import in_bucket


def obstacle(parts: Parts, index: int) -> str:
    """Why stage `index` cannot train all seeds at once; "" where it can."""
    stage = parts.config.stages[index]
    if stage.kind != "train":
        return f"it is of kind {stage.kind!r}, and one of kind 'train' is wanted"
    if networks.finds_genotype(parts):
        return "each seed searches for a network of its own"
    if stage.stop.rule != "length":
        return f"stop.rule = {stage.stop.rule!r} ends seeds at different steps"
    if stage.data_parameters.mode != "none":
        return "each seed has data parameters of its own"
    before = parts.config.stages[index - 1]
    if runner.continues_optimizer(parts, index) and before.stop.rule != "length":
        return "the optimisers that seeds continue stand at different steps"
    if _filters_differ(parts, index):
        return "the front filters that seeds go on with stand at different epochs"
    if networks.mesh_of_norms(parts) is not None:
        return "batch_norm_of = 'device' splits batches between devices"
    return ""


def _filters_differ(parts: Parts, index: int) -> bool:
    """Whether the temperature of seeds' front filters may have fallen differently."""
    # That of the filter, whatever network is behind it: here one without layers.
    falls = temperature_epochs(networks.behind_front(parts, nn.Sequential(()))) > 0
    while falls and runner.follows_training(parts, index):
        index -= 1
        stop = parts.config.stages[index].get("stop")
        if stop and stop.rule != "length":
            return True
    return False


def begun(parts: Parts, index: int, folder: Path) -> bool | None:
    """How a stage has begun in the workdir of the whole: at once (True), or in turn.

    None where nothing of it is saved.
    """
    if _has_last(runner.stage_folder(parts, index, folder)):
        return True
    folders = configs.seed_folders(parts.config, folder)
    own = [runner.stage_folder(parts, index, seed_folder) for seed_folder in folders]
    if any(_has_last(where) for where in own):
        return False
    return None


def _has_last(where: Path) -> bool:
    return any(_has_state(where / kind) for kind in TO_GO_ON)


def _has_state(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    saved = [path for path in folder.iterdir() if path.name.isdigit()]
    if in_bucket(folder):
        # Orbax writes in place there, and marks what is complete.
        saved = [path for path in saved if (path / COMPLETE_FILE).exists()]
    return bool(saved)


def run(members: Sequence[Member], index: int, folder: Path) -> None:
    """Trains stage `index` of all members, unless it is done.

    `folder` is the workdir of the whole, where the stacked states are kept meanwhile.

    Raises:
      UserError: for numbers that are not finite, or what cannot be written.
    """
    done = [_done_file(member, index) for member in members]
    if together.agreed(all(path.exists() for path in done)):
        return
    first, count = members[0].parts, len(members)
    stage = first.config.stages[index]
    model = networks.create_network(first, members[0].folder)
    plan = runner.plan_of(first, index, len(first.task.train))
    training_run.tell_of_statistics(first, index, plan)
    learner = create_learner(first, stage, model, plan)
    starts = [
        train.starting_state(m.parts, index, m.folder, model, learner.transformations)
        for m in members
    ]
    updates = updates_made(starts[0].opt_state[WEIGHTS])
    start = stacked(starts)
    del starts
    if jax.process_count() > 1:
        together.check_same(f"a start of stage {plan.name!r}", sharding.digest(start))
    step = told_of_epochs(learner.step, first, index, members[0].folder, model, plan)
    stepped = first.once(("of each seed", step), lambda: step_of_each(step))
    keys = jnp.stack([runner.stage_key(member.parts, index) for member in members])
    feed = feeding.create_feed(
        first, stage, plan, keys, [first.task.train], lambda number: stepped
    )
    checkpoints = SeedCheckpoints(members, index, folder)
    log = JsonLines(folder / "metrics.jsonl")
    later = tuple(stage.name for stage in first.config.stages[index + 1 :])
    measure = validation.make_validation(
        first, learner.logits_of, stage, of_each=of_each
    )
    try:
        state, notes = loop.train_stage(
            dataclasses.replace(plan, clips_per_step=count * plan.clips_per_step),
            sharding.replicate(start, first.mesh),
            step_fn=feed.step_fn,
            batches_from=feed.batches_from,
            validate=lambda state: told_of_each(measure(state)),
            checkpoints=checkpoints,
            reporter=lambda start: runner.reporter(
                plan, f"{plan.name} ({count} seeds)", start, folder, log
            ),
            learning_rate=lambda step: float(learner.schedule(updates + step)),
            rule=EachHighest(count),
            logs=(log,),
            later_stages=later,
        )
    except NotFiniteError as error:
        raise UserError(
            f"{error} It is so in one or more of {count} seeds; with "
            "config.seeds_at_once=no, in a new --workdir, the cause is told too."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"{count} seeds at once do not fit the memory of the device: give fewer "
            "config.seeds in a new --workdir, or config.seeds_at_once=no."
        ) from error
    checkpoints.keep_last(state, notes)
    checkpoints.close()
    for number, member in enumerate(members):
        _keep_log(log, member, number, plan.name, later)
        own = checkpoints.notes_of(notes, number)
        trained = training_run.TrainingRun(
            member.parts, stage, plan, of_member(state, number), own
        )
        inferring = fusion.at_inference(model, variables_of(trained.state))
        size = networks.size_of(member.parts, *inferring)
        rows = trained.rows({**size, **trained.speed})
        if together.is_first():
            write_json(done[number], rows)
    together.wait(f"end of stage {plan.name!r}")
    if together.is_first():
        # Each seed has its own now.
        checkpoints.directory.rmtree()


def _done_file(member: Member, index: int) -> Path:
    where = runner.stage_folder(member.parts, index, member.folder)
    return where / runner.DONE_FILE


def _keep_log(
    log: JsonLines, member: Member, number: int, stage: str, later: tuple[str, ...]
) -> None:
    """Writes a seed's own lines of `stage` to its metrics.jsonl."""
    if not together.is_first():
        return
    own_log = JsonLines(member.folder / "metrics.jsonl")
    own_log.rewind(stage, -1, later)
    with saving(own_log.path):
        lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    kept = []
    for line in lines:
        if line["stage"] == stage:
            own = {name: value for name, value in line.items() if "/" not in name}
            for name in own:
                own[name] = line.get(f"{name}/{number}", own[name])
            kept.append(own)
    own_log.extend(kept)
    own_log.flush()
