"""One process of the pods that `benchmarks.pods` starts: times steps of one kind.

Arguments: name, batch, repetitions, 1 for tiny sizes or 0. Process 0 prints seconds.
"""

import json
import time
from typing import Any

from benchmarks.timing import WARM_UP
from kws_jax import command_line, distributed, runtime

# Of a table of parameters of clips, as many as Speech Commands has.
CLIPS = 36_923


def main(argv: list[str]) -> None:
    """Joins the pod, and steps together with its other processes."""
    _, name, batch, repeats, small = argv
    runtime.configure()
    distributed.start(distributed.settings({}))
    import jax

    from benchmarks import pod_steps
    from kws_jax.training import sharding

    mesh = sharding.data_mesh()
    made = pod_steps.step_of(name, int(batch), CLIPS, small=small == "1")
    step, (state, *batches, key) = made
    split = [sharding.shard(_own_share(one), mesh) for one in batches]
    state = sharding.replicate(state, mesh)
    jitted = sharding.jit_replicated(step, mesh, donate_argnums=0)
    seconds = []
    for _ in range(WARM_UP + int(repeats)):
        begin = time.perf_counter()
        state, measures = jitted(state, *split, key)
        jax.block_until_ready((state, measures))
        seconds.append(time.perf_counter() - begin)
    if jax.process_index() == 0:
        print(json.dumps({"seconds": seconds[WARM_UP:]}))


def _own_share(batch: dict[str, Any]) -> dict[str, Any]:
    """The rows of a batch that this process puts on its devices."""
    import jax
    import numpy as np

    processes, number = jax.process_count(), jax.process_index()
    return {
        name: np.split(np.asarray(values), processes)[number]
        for name, values in batch.items()
    }


if __name__ == "__main__":
    command_line.run(main)
