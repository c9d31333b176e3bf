"""Times a whole training step: `python -m benchmarks.train`.

Features are given; cross-entropy, gradients, SGD with momentum, running statistics.
"""

from benchmarks import command
from benchmarks.command import JAX, TORCH, Session
from benchmarks.networks import CASES


def measure(session: Session, chosen: list[str]) -> None:
    """A step of each chosen network, ours and its twin's."""
    from benchmarks import steps
    from kws_jax.frontends.registry import create_frontend

    batch, small = session.options.batch, session.options.small
    for name in chosen:
        case = CASES[name]
        features = steps.random_features(create_frontend(case.frontend), batch)
        call, work = steps.training(case.create(small=small), features)
        calls = {JAX: call}
        if session.has_twins:
            from benchmarks.twins import steps as twin_steps

            twin = case.create_twin(small=small)
            calls[TORCH] = twin_steps.training(twin, features)
        session.time(name, calls, work, clips=batch)


if __name__ == "__main__":
    command.run("train", tuple(CASES), measure)
