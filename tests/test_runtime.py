import subprocess
import sys

import pytest

# Page faults of a second buffer of 100 MB on another thread than the first's owner.
FAULTS = """
import resource, threading
import numpy as np
from kws_jax import runtime

made = {prepare}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(100_000_000, 1, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

counts = []
thread = threading.Thread(target=lambda: counts.extend([faults(), faults()]))
thread.start()
thread.join()
print(made, *counts)
"""


def faults_of_two_buffers(prepare):
    program = FAULTS.format(prepare=prepare)
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    made, first, second = output.stdout.split()
    return made == "True", int(first), int(second)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_buffers_of_any_thread_are_used_again_without_page_faults():
    made, first, second = faults_of_two_buffers("runtime.keep_freed_memory()")
    if not made:
        pytest.skip("the C library has no mallopt")
    # The kernel may give huge pages (2 MiB), so few faults, for a large buffer.
    assert first > 40
    assert second < first / 10
    _, first, second = faults_of_two_buffers("False")
    assert second > first / 2
