"""Times training steps of several seeds: `python -m benchmarks.seeds`.

Eight seeds in turn, each a call of its own, beside the eight in one program; features
given, the same for all.
"""

from benchmarks import command
from benchmarks.command import Session
from benchmarks.networks import CASES

SEEDS = 8
IN_TURN, AT_ONCE = "JAX in turn", "JAX at once"


def measure(session: Session, chosen: list[str]) -> None:
    """A step of all seeds of each chosen network, both ways."""
    from benchmarks import steps
    from kws_jax.frontends.registry import create_frontend

    batch, small = session.options.batch, session.options.small
    for name in chosen:
        case = CASES[name]
        features = steps.random_features(create_frontend(case.frontend), batch)
        model = case.create(small=small)
        in_turn, at_once, work = steps.seeds(model, features, SEEDS)
        calls = {IN_TURN: in_turn, AT_ONCE: at_once}
        session.time(f"{name} ×{SEEDS}", calls, work, clips=SEEDS * batch)


if __name__ == "__main__":
    command.run("seeds", ("tc_resnet8", "tenet12", "res15", "conv_mixer"), measure)
