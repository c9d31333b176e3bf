"""Times a search step, architecture and weights: `python -m benchmarks.search`.

First-order DARTS on the supernet of the AutoKWS space, features given; and the same
with the candidates of each layer computed one after the other.
"""

from typing import TYPE_CHECKING

from benchmarks import command
from benchmarks.command import JAX, TORCH, Session
from benchmarks.networks import LABELS

if TYPE_CHECKING:
    from kws_jax.search.space import SearchSpace

NAMES = ("autokws",)
SEPARATE = "JAX separate"


def space_for(small: bool) -> "SearchSpace":
    """AutoKWS' space, or a tiny one for trials."""
    from kws_jax.search.space import SearchSpace

    if small:
        return SearchSpace(strides=(1,), channels=(8,), stem_channels=8)
    return SearchSpace()


def measure(session: Session, chosen: list[str]) -> None:
    """A step of the project's supernet, of the plain one and of the twin."""
    from benchmarks import steps
    from kws_jax.frontends.registry import create_frontend

    batch, space = session.options.batch, space_for(session.options.small)
    features = steps.random_features(create_frontend("mfcc"), batch)
    for name in chosen:
        call, work = steps.search(space, features, LABELS)
        separate, _ = steps.search(space, features, LABELS, steps.SeparateSuperNet)
        calls = {JAX: call, SEPARATE: separate}
        if session.has_twins:
            from benchmarks.twins import steps as twin_steps

            calls[TORCH] = twin_steps.search(space, features, LABELS)
        # Each half of the step sees a batch of its own.
        session.time(name, calls, work, clips=2 * batch)


if __name__ == "__main__":
    command.run("search", NAMES, measure, repeats=10)
