"""Which machine and versions, and the number of threads of both frameworks."""

import importlib.metadata
import importlib.util
import os
import platform
import time
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "tensorflow-cpu", "torch", "librosa")
_MIB = 2**20
_STAT = Path("/proc/stat")


def cores() -> int:
    """Processor cores this process may use; XLA starts as many threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_torch() -> bool:
    """Whether PyTorch, which the twins need, is installed."""
    return importlib.util.find_spec("torch") is not None


def match_threads() -> int:
    """Gives PyTorch, where installed, as many threads as XLA has; returns how many."""
    count = cores()
    if has_torch():
        import torch

        torch.set_num_threads(count)
    return count


def busy_cores(seconds: float = 0.5) -> float:
    """Cores that other programs use while this one sleeps; 0 where it is not told."""
    if not _STAT.exists():
        return 0.0
    before = _STAT.read_text()
    time.sleep(seconds)
    return busy_between(before, _STAT.read_text())


def busy_between(before: str, after: str) -> float:
    """Mean number of busy cores between two readings of /proc/stat.

    Its first line sums, over all cores, the ticks spent as user, nice, system, idle,
    waiting for input and output, and others; one line for each core follows.
    """
    first, last = (
        [int(v) for v in t.split("\n")[0].split()[1:9]] for t in (before, after)
    )
    spent = [b - a for a, b in zip(first, last)]
    cpus = sum(line[:3] == "cpu" for line in after.split("\n")) - 1
    idle = spent[3] + spent[4]
    return cpus * (1 - idle / max(sum(spent), 1))


def describe() -> dict[str, Any]:
    """Processor, cores, JAX's device and the versions of what is measured."""
    import jax

    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "largest_cache_mib": cache_bytes() / _MIB,
        "system": platform.platform(),
        "device": str(jax.devices()[0].device_kind),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def cache_bytes() -> int:
    """Size of the largest processor cache in bytes; 32 MiB where it is not told."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        factor = {"K": 2**10, "M": _MIB}.get(text[-1:])
        if factor and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * factor)
    return max(sizes, default=32 * _MIB)


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
