"""Counts what devices send each other in a training step: no device but the CPU needed.

    python -m benchmarks.collectives --devices=8

The steps of `benchmarks.pods` are compiled for fake devices; the program's own text
then says which arrays are summed over all of them. Nothing is run, so the figures are
exact and the same everywhere. What a pod makes of them is estimated in
launch/scaling.md.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from absl import flags

from benchmarks import options
from benchmarks.pods import NAMES
from kws_jax import command_line, runtime
from kws_jax.errors import UserError

_DEVICES = flags.DEFINE_integer("devices", 8, "Fake devices.", lower_bound=2)
_CLIPS = flags.DEFINE_integer("clips", 36_923, "Rows of the table of clips.")

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_CALL = re.compile(rf" = (.+?) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"(pred|[a-z]+\d+)\[([\d,]*)\]")


def count(program: str) -> dict[str, tuple[int, int]]:
    """Collective operation -> (calls, bytes of their results) in a compiled program.

    `program` is XLA's text of it. Loops count once.
    """
    calls: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for line in program.splitlines():
        found = _CALL.search(line)
        if found:
            calls[found[2]] += 1
            sizes[found[2]] += sum(map(_size, _ARRAY.findall(found[1])))
    return {kind: (calls[kind], sizes[kind]) for kind in calls}


def _size(array: tuple[str, str]) -> int:
    name, shape = array
    bits = 8 if name == "pred" else int(re.sub(r"\D", "", name))
    return math.prod(map(int, filter(None, shape.split(",")))) * bits // 8


def compiled(step: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """The text of a step; its arguments are a state, batches to be split, and a key."""
    from kws_jax.training import sharding

    mesh = sharding.data_mesh()
    state, *batches, key = arguments
    inputs = (
        sharding.replicate(state, mesh),
        *(sharding.shard(batch, mesh) for batch in batches),
        key,
    )
    jitted = sharding.jit_replicated(step, mesh, donate_argnums=0)
    # The text is that before the code of the CPU is made, which takes longest.
    fast = {"xla_backend_optimization_level": 0}
    return jitted.lower(*inputs).compile(compiler_options=fast).as_text()


def main(argv: list[str]) -> None:
    """Prints a line for each step: calls and bytes, of all and of each kind."""
    if argv[1:]:
        raise UserError(f"Unexpected arguments {argv[1:]}; all options begin with --.")
    wanted = options.read(batch=128, repeats=1)
    chosen = wanted.chosen(NAMES)
    batch = wanted.batch
    if batch % _DEVICES.value:
        raise UserError(
            f"--batch={batch} cannot be divided over --devices={_DEVICES.value}; give "
            "a multiple."
        )
    os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(_DEVICES.value))
    runtime.configure()
    from benchmarks import pod_steps

    told = {}
    for name in chosen:
        step, arguments = pod_steps.step_of(
            name, batch, _CLIPS.value, small=wanted.small
        )
        told[name] = found = count(compiled(step, arguments))
        total = sum(size for _, size in found.values())
        kinds = ", ".join(
            f"{calls} {kind} of {size:,} B" for kind, (calls, size) in found.items()
        )
        print(f"{name}: {total / 1e6:.3f} MB a step: {kinds}", flush=True)
    if wanted.json:
        wanted.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    command_line.run(main)
