import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

# Page faults of two buffers, one after the other.
FAULTS = """
import resource, threading
import numpy as np
from kws_jax import runtime

made = {prepare}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full({size}, 1, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

counts = []
if {thread}:
    thread = threading.Thread(target=lambda: counts.extend([faults(), faults()]))
    thread.start()
    thread.join()
else:
    counts = [faults(), faults()]
print(made, *counts)
"""


def faults_of_two_buffers(prepare, size=100_000_000, *, thread=False):
    program = FAULTS.format(prepare=prepare, size=size, thread=thread)
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    made, first, second = output.stdout.split()
    return made == "True", int(first), int(second)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_buffers_are_used_again_without_page_faults():
    made, first, second = faults_of_two_buffers("runtime.keep_freed_memory()")
    if not made:
        pytest.skip("the C library has no mallopt")
    # The kernel may give huge pages (2 MiB), so few faults, for a large buffer.
    assert first > 40
    assert second < first / 10
    keep = "runtime.keep_freed_memory()"
    _, first, second = faults_of_two_buffers(keep, 20_000_000, thread=True)
    assert first > 5
    assert second <= first / 10
    _, first, second = faults_of_two_buffers("False")
    assert second > first / 2
    # Large networks hold such a buffer in a training step.
    _, first, second = faults_of_two_buffers(keep, 5 * 2**29)
    assert second < first / 10


def test_programs_are_kept_compiled_unless_the_user_says_otherwise():
    program = "import os; from kws_jax import runtime; runtime.configure({0!r}); " + (
        "import jax; c = jax.config; print(c.jax_compilation_cache_dir, "
        "c.jax_persistent_cache_min_compile_time_secs)"
    )

    def told(cache_dir="", **environment):
        clean = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")}
        clean.pop("KWS_JAX_CACHE", None)
        done = subprocess.run(
            [sys.executable, "-c", program.format(cache_dir)],
            env=clean | environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.split()

    home = os.path.expanduser("~")
    assert told() == [f"{home}/.cache/kws_jax/xla", "0.5"]
    assert told("/there") == ["/there/xla", "0.5"]
    assert told(JAX_COMPILATION_CACHE_DIR="/mine") == ["/mine", "0.5"]


# Whether a convolution of images is given to YNNPACK, and what was asked of XLA.
LIBRARY = """
import os
from kws_jax import runtime
runtime.configure()
import jax
from jax import lax, numpy as jnp

def conv(x, kernel):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=dimensions
    )

x, kernel = jnp.ones((8, 98, 40, 45)), jnp.ones((3, 3, 45, 45))
program = jax.jit(conv).lower(x, kernel).compile()
print("ynn" in program.as_text(), jax.device_count(), os.environ["XLA_FLAGS"].split())
"""


def test_flags_are_left_alone_beside_libtpu(tmp_path):
    (tmp_path / "libtpu.py").touch()
    program = "import os; from kws_jax import runtime; runtime.configure(); " + (
        "print(os.environ['XLA_FLAGS'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"XLA_FLAGS": "--mine=1", "PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "--mine=1\n"


@pytest.mark.skipif(
    not importlib.metadata.version("jaxlib").startswith("0.10.")
    or importlib.util.find_spec("libtpu") is not None,
    reason="for this jaxlib, or beside libtpu, XLA's flags are left alone",
)
@pytest.mark.parametrize("library", ["", "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"])
def test_images_are_convolved_by_the_faster_library_unless_the_user_says_otherwise(
    library,
):
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    devices = "--xla_force_host_platform_device_count=2"
    given = [devices, f"{flag}={library}"] if library else [devices]
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY],
        env=os.environ | {"XLA_FLAGS": " ".join(given), "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    )
    by_ynnpack, count, flags = done.stdout.split(maxsplit=2)
    assert (by_ynnpack, count) == (str(bool(library)), "2")
    asked = library or "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    assert flags.strip() == str([devices, f"{flag}={asked}"])
