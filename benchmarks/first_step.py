"""The process that `benchmarks.compile` starts: prints the seconds of a first step.

Arguments: name, batch, 1 for tiny sizes or 0.
"""

import json
import sys
import time

from kws_jax import runtime


def main(name: str, batch: int, small: bool) -> None:
    """Builds the step, then times its first call."""
    runtime.configure()
    from benchmarks import compile as compilation
    from benchmarks import search, steps
    from benchmarks.networks import CASES, LABELS
    from kws_jax.frontends.registry import create_frontend

    if name == compilation.SEARCH:
        features = steps.random_features(create_frontend("mfcc"), batch)
        call, _ = steps.search(search.space_for(small), features, LABELS)
    else:
        case = CASES[name]
        features = steps.random_features(create_frontend(case.frontend), batch)
        call, _ = steps.training(case.create(small=small), features)
    begin = time.perf_counter()
    call()
    print(json.dumps({"seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1")
