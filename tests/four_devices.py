"""Four fake devices, which only a process of its own can have."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def on_four_devices(*arguments: str) -> str:
    """What `python` prints with these arguments; tests can import each other there."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
