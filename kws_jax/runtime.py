"""Process-wide settings that must be made before the first large allocation."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

# What jaxlib gives to YNNPACK on CPUs: all that it does by default but convolutions.
# XLA's own, by Eigen, take half the time from 32 channels on, and about the same below
# (figures in benchmarks/README.md).
_LIBRARY_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_LIBRARY = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# jaxlib ends the process at a flag that it does not know, so others are left alone.
_JAXLIB = "0.10."


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed buffers instead of returning them to the system.

    By default every large buffer is mapped and page-faulted anew, which costs more
    than the arithmetic of a small network (a factor of nine for one addition over
    51 MB). Threads share as many arenas as there are cores, and one more: with eight
    for each core, as by default, memory is unmapped and faulted anew all the time; in
    a single one compilation leaves so many holes that each allocation in a step has
    to search (figures in benchmarks/README.md). Returns whether the setting was made;
    other C libraries lack it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    # -1 is never: the largest number that fits is below the buffers of large networks.
    cores = len(os.sched_getaffinity(0))
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_ARENA_MAX: cores + 1}
    return all(libc.mallopt(name, value) for name, value in settings.items())


def cache_root(directory: str | os.PathLike[str] = "") -> Path:
    """Where prepared data and compiled programs live.

    `directory` if given, else $KWS_JAX_CACHE, else ~/.cache/kws_jax.
    """
    chosen = directory or os.environ.get("KWS_JAX_CACHE") or "~/.cache/kws_jax"
    return Path(chosen).expanduser()


def configure(cache_dir: str = "") -> None:
    """Sets allocator, log levels, XLA's libraries and cache; imports no JAX.

    Values that the user has set in the environment win.
    """
    configure_tensorflow()
    choose_libraries()
    compiled = cache_root(cache_dir) / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    if "jax" in sys.modules:
        # It reads them when it is imported, which TensorFlow does.
        config = sys.modules["jax"].config
        config.update(
            "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
        )
        config.update(
            "jax_persistent_cache_min_compile_time_secs",
            float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]),
        )


def choose_libraries() -> None:
    """Says by which library XLA convolves on CPUs, unless $XLA_FLAGS does.

    To be called before JAX compiles anything. Versions of jaxlib for which it was not
    measured keep their default, and so do machines with libtpu, which reads the flags
    too and was not tried.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    known = importlib.metadata.version("jaxlib").startswith(_JAXLIB)
    if known and _LIBRARY_FLAG not in flags and not importlib.util.find_spec("libtpu"):
        os.environ["XLA_FLAGS"] = f"{flags} {_LIBRARY_FLAG}={_LIBRARY}".strip()


def configure_tensorflow() -> None:
    """The part that must come before TensorFlow, and needs no config of ours."""
    keep_freed_memory()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
