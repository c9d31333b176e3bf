"""Times a weight step of ProxylessNAS along one path: `python -m benchmarks.paths`.

The supernet, of whose candidates each layer computes one, beside the network of these
layers alone; features given. A path is named by the operation of all its layers;
`random` is drawn from the space.
"""

from typing import TYPE_CHECKING

from benchmarks import command
from benchmarks.command import JAX, Session

if TYPE_CHECKING:
    from kws_jax.search.mbconv_space import MBConvSpace

DRAWN = "random"
NAMES = ("E1K3", "E3K5", "E6K7", DRAWN)
# In the supernet whose candidates are apart, and in the one where they share weights.
APART, NESTED = "JAX, a path", "JAX, a nested path"
BANDS, LABELS = 60, 12


def space_for(*, small: bool, nested: bool) -> "MBConvSpace":
    """The space of the search, or a tiny one for trials."""
    from kws_jax.search.mbconv_space import MBConvSpace

    if small:
        return MBConvSpace((1, 2), (3,), nested=nested)
    return MBConvSpace(nested=nested)


def layers_of(name: str, space: "MBConvSpace") -> tuple[str, ...]:
    """The operation of each layer: the named one, the last of a space without it."""
    import numpy as np

    if name == DRAWN:
        rng = np.random.default_rng(0)
        return tuple(str(rng.choice(names)) for names in space.candidates)
    blocks = [f"E{e}K{k}" for e in space.expansions for k in space.kernels]
    return (name if name in blocks else blocks[-1],) * len(space.candidates)


def measure(session: Session, chosen: list[str]) -> None:
    """A step along each path in both supernets, and one of its network alone."""
    from benchmarks import steps
    from kws_jax.frontends.registry import create_frontend
    from kws_jax.models.mbconv import MBConvNet

    batch, small = session.options.batch, session.options.small
    frontend = create_frontend("mfcc", num_mel=BANDS, num_coefficients=BANDS)
    features = steps.random_features(frontend, batch)
    spaces = [space_for(small=small, nested=nested) for nested in (False, True)]
    for name in chosen:
        layers = layers_of(name, spaces[0])
        alone, work = steps.training(MBConvNet(LABELS, layers), features)
        apart, nested = (
            steps.path(space, layers, features, LABELS) for space in spaces
        )
        calls = {JAX: alone, APART: apart, NESTED: nested}
        session.time(name, calls, work, clips=batch)


if __name__ == "__main__":
    # The batch of configs/end_to_end_nas.py.
    command.run("paths", NAMES, measure, batch=100, repeats=7)
