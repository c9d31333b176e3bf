"""One process of a rehearsed pod: runs small experiments and writes what came out.

    python -m pod_rehearsal OUT STEPS CASE …

It is started by `launch/local_pod.py`, or alone for the layout 1×1. OUT gets the
workdir of each case, and from process 0 `CASE.npz` (the last state of each stage, by
stage and path) and `CASE.json` (seconds, rows of results).
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

from kws_jax import command_line, distributed

# Small rates: sums of another order differ in the seventh digit, and large steps
# through batch norms and roundings would soon make more of it. Adam makes whole steps
# even of gradients that are nothing but such digits.
RATE, ADAM_RATE = 1e-4, 2e-5
CLIPS, BATCH = 46, 8


def searching(steps):
    """AutoKWS with noise on its skips, on a skeleton of two layers."""
    from configs import autokws
    from kws_jax.search.space import SearchSpace
    from kws_jax.stages import search

    config = autokws.get_config("noisydarts,cpu").unlock()
    first = config.stages[0]
    first.update(epochs=0.0, steps=steps, batch_size=BATCH)
    first.optimizer.learning_rate = RATE
    config.stages = (first,)
    search.create_space = lambda parts: SearchSpace(
        strides=(1, 2), channels=(4, 6), stem_channels=4, shortcut="1x1", se_reduction=2
    )
    return config


def data_parameters(steps):
    """Labels and clips with temperatures, in noise; then 4 bits with learned ranges."""
    from configs import data_parameters, quantized

    config = data_parameters.get_config("joint,tc_resnet8,cpu").unlock()
    config.network.width = 0.25
    first = config.stages[0]
    first.update(epochs=0.0, steps=steps, batch_size=BATCH)
    first.data_parameters.snr_edges_db = (0.0,)
    first.optimizer.learning_rate = RATE
    config = quantized.add_quantization(config, "w4a4")
    config.stages[1].update(steps=steps, calibration_batches=2)
    return config


def curriculum(steps):
    """Two stages of the curriculum: mixup, masks, noise, rooms, one optimiser."""
    from configs import convmixer

    config = convmixer.get_config("curriculum,tc_resnet8,cpu").unlock()
    config.network.width = 0.25
    config.stages = (config.stages[0], config.stages[-1])
    for stage in config.stages:
        stage.update(epochs=0.0, steps=steps, batch_size=BATCH)
        stage.optimizer.update(learning_rate=ADAM_RATE, schedule="constant")
    return config


def own_norms(steps):
    """Data parameters, with batch norms of each device."""
    config = data_parameters(steps)
    config.batch_norm_of = "device"
    return config


def one_path(steps):
    """ProxylessNAS: a path at a time for the weights, gates for the architecture."""
    from configs import end_to_end_nas

    config = end_to_end_nas.get_config("mfcc40,cpu").unlock()
    config.search.update(expansions=(1, 2), kernels=(3, 5))
    first = config.stages[1]
    first.update(
        epochs=0.0,
        steps=steps,
        batch_size=BATCH,
        warmup_epochs=0.0,
        architecture_every=2,
    )
    first.optimizer.update(learning_rate=RATE, schedule="constant")
    first.architecture_optimizer.update(learning_rate=ADAM_RATE, schedule="constant")
    config.stages = (first,)
    return config


def learned_bits(steps):
    """Training, then layers that learn their bits and ranges; ten steps at most.

    Sooner or later, with 4 bits after some fifteen steps and with 8 in the first ones,
    an activation lies on the border of two numbers, and goes to one of them here and to
    the other there. The losses, equal to the last digit until then, differ in the third
    for that step.
    """
    from configs import quantized

    config = quantized.get_config("learned_bits,tc_resnet8,cpu").unlock()
    config.network.width = 0.25
    for stage in config.stages:
        stage.update(epochs=0.0, steps=min(steps, 10), batch_size=BATCH)
        stage.optimizer.learning_rate = RATE
    last = config.stages[1]
    last.update(calibration_batches=2)
    last.bits.update(weights=4, activations=4)
    # Logits of few bits are equal now and then, and the answer is that of rounding.
    last.keep_float = ("head/*",)
    last.range_optimizer.learning_rate = ADAM_RATE
    last.bits_optimizer.learning_rate = ADAM_RATE
    return config


CASES = {
    case.__name__: case
    for case in (
        searching,
        data_parameters,
        curriculum,
        own_norms,
        one_path,
        learned_bits,
    )
}


def parts_of(case, steps):
    """The parts of a case, on random clips.

    All log-mel features are of one scale. The first of the cepstra, with which most of
    these experiments begin, is fifty times as large as the others, and so is what
    rounding makes of the gradients of its weights.
    """
    from tiny_parts import tiny_parts

    from kws_jax.frontends.registry import create_frontend

    config = CASES[case](steps)
    config.log_every_steps = 1
    config.data.rooms = ""
    # Of 16 clips 4 are left for a second batch, in which two of four devices have none.
    config.evaluation.update(batch_size=12, snr_db=(0.0,))
    for stage in config.stages:
        # Two validations, the second one at the end.
        clips = CLIPS // 2 if stage.kind == "search" else CLIPS
        stage.eval_every_epochs = -(-steps // 2) * BATCH / clips
    parts = tiny_parts(config, clips=CLIPS)
    return dataclasses.replace(parts, frontend=create_frontend("log_mel"))


def run(case, steps, out, stages=None):
    """Runs stages of a case (all of them by default), and the test of what is left."""
    import jax
    import numpy as np
    from rich.console import Console

    from kws_jax import experiment, together
    from kws_jax.stages import dispatch, runner

    parts, folder = parts_of(case, steps), out / case
    began, states, run_stage = time.monotonic(), {}, runner.run_stage

    def kept(parts, index, *arguments, **settings):
        state, notes = run_stage(parts, index, *arguments, **settings)
        found = jax.tree_util.tree_leaves_with_path(state)
        for path, leaf in found:
            name = f"{index}{jax.tree_util.keystr(path)}"
            states[name] = np.asarray(leaf)
        return state, notes

    runner.run_stage = kept
    experiment.claim_workdir(parts, folder)
    rows = []
    for index in range(len(parts.config.stages)) if stages is None else stages:
        rows += dispatch.run(parts, index, folder)
    searches = parts.config.stages[-1].kind in ("search", "proxyless_search")
    if not searches and stages is None:
        rows = experiment.finish(parts, folder, rows, Console(quiet=True))
    runner.run_stage = run_stage
    if together.is_first():
        np.savez(out / f"{case}.npz", **states)
        told = {"seconds": time.monotonic() - began, "rows": rows}
        (out / f"{case}.json").write_text(json.dumps(told))


def several_seeds(out):
    """Two seeds trained in one program; the best state of each is kept."""
    import jax
    import numpy as np
    from tiny_parts import tiny_config, tiny_parts

    from kws_jax import together
    from kws_jax.stages import networks, seeds_at_once, train
    from kws_jax.stages.stacked_seeds import Member

    config = tiny_config(steps=4, batch_size=BATCH, seeds=2)
    config.log_every_steps = 1
    config.stages[0].eval_every_epochs = 2 * BATCH / CLIPS
    config.stages[0].optimizer.learning_rate = RATE
    parts = tiny_parts(config, clips=CLIPS)
    folders = [out / f"seed-{seed}" for seed in range(2)]
    members = [Member(parts.of_seed(s), folder) for s, folder in enumerate(folders)]
    seeds_at_once.run(members, 0, out)
    for member in members:
        model = networks.create_network(member.parts, member.folder)
        state = train.best_state(member.parts, 0, member.folder, model)
        found = jax.tree_util.tree_leaves_with_path(state)
        if together.is_first():
            values = {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in found}
            np.savez(out / f"{member.folder.name}.npz", **values)


def fail(kind):
    """Process 1 ends by an error of the user's, of ours, by a kill, or when asked."""
    import os
    import signal

    import jax

    from kws_jax import together
    from kws_jax.errors import UserError
    from kws_jax.training import preemption

    together.wait("all are here")
    if jax.process_index() == 1:
        if kind == "user":
            raise UserError("process 1 has found something wrong")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "asked":
            with preemption.watched():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
        raise RuntimeError("process 1 has a bug")
    together.wait("what never comes")


def die_after_saving(number):
    """Has process `number` killed when it has saved its first checkpoint."""
    import os
    import signal

    import jax

    from kws_jax.training.checkpoints import StageCheckpoints

    save = StageCheckpoints.save_last

    def save_and_die(*arguments):
        save(*arguments)
        if jax.process_index() == number:
            os.kill(os.getpid(), signal.SIGKILL)

    StageCheckpoints.save_last = save_and_die


def broken(out, wrong, bad):
    """A training in which one clip makes numbers that are not finite."""
    import test_finiteness

    config = test_finiteness.config_of()
    happens = getattr(test_finiteness, wrong)
    test_finiteness.trained(out, config, wrong=happens, bad=int(bad))


def main(argv):
    """Runs the cases that the arguments name."""
    from absl import logging

    _, out, steps, *cases = argv
    logging.set_verbosity(logging.ERROR)
    distributed.start(distributed.settings({}))
    if steps == "fail":
        fail(cases[0])
    if steps == "seeds":
        several_seeds(Path(out))
        return
    if steps == "broken":
        broken(Path(out), *cases)
        return
    if steps.startswith("die"):
        _, number, steps = steps.split(",")
        die_after_saving(int(number))
    for case in cases:
        name, _, stages = case.partition(":")
        chosen = [int(stage) for stage in stages.split(",")] if stages else None
        run(name, int(steps), Path(out), chosen)


if __name__ == "__main__":
    command_line.run(main)
    sys.exit(0)
