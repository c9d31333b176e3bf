"""A training that goes on and on takes no more memory than after its first epoch.

`KWS_JAX_MEMORY_SECONDS=3600` watches an hour of it, and `pytest -s` shows each minute.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("KWS_JAX_MEMORY_SECONDS", "5"))
MOST = 50e6  # bytes
TESTS = Path(__file__).parent
# Trains a narrow TC-ResNet8 until it is killed: batches, log lines, validations and
# checkpoints as in any training.
TRAINING = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from kws_jax import runtime
runtime.configure(sys.argv[2])
from tiny_parts import tiny_config, tiny_parts
from kws_jax.stages import train
config = tiny_config(steps=10**8, batch_size=8)
config.log_every_steps = 10
config.stages[0].eval_every_epochs = 10.0
train.run(tiny_parts(config, clips=64), 0, Path(sys.argv[1]))
"""


def memory(process):
    """Resident memory in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def newest(folder, split):
    """The newest complete log line of a split, or None."""
    log = folder / "metrics.jsonl"
    text = log.read_text() if log.exists() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return next((line for line in reversed(lines) if line["split"] == split), None)


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system tells no program's size"
)
def test_memory_does_not_grow_with_the_epochs(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(tmp_path / "run"), str(tmp_path)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # The first validation and the first checkpoint belong to what it needs.
        validated = None
        while validated is None:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
            validated = newest(tmp_path / "run", "validation")
        time.sleep(1)
        start, began, grown = memory(process), time.monotonic(), []
        minute, most = 1, 0
        while (passed := time.monotonic() - began) < SECONDS:
            assert process.poll() is None, process.stderr.read()
            grown.append(memory(process) - start)
            most = max(most, grown[-1])
            if passed >= 60 * minute:
                print(f"minute {minute}: {most / 1e6:.1f} MB more at most", flush=True)
                minute, most = minute + 1, 0
            time.sleep(0.2)
        last = newest(tmp_path / "run", "train")
    finally:
        process.kill()
        process.wait()
    print(
        f"{max(grown) / 1e6:.1f} MB more at most, {grown[-1] / 1e6:.1f} MB in the end, "
        f"of {start / 1e6:.0f} MB; epochs {validated['epoch']:g} to {last['epoch']:g}"
    )
    assert last["epoch"] > validated["epoch"]
    assert max(grown) < MOST
