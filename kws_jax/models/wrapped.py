"""Networks that stand behind filters: where they are held, and how to get at them.

A module that holds a network has its head and embeddings, and the network in an
attribute of `HOLDERS`; the network's parameters lie under that name.
"""

from collections.abc import Iterator

import flax.linen as nn

# Attributes of modules that hold a network: behind learned filters, a front filter.
HOLDERS = ("encoder", "network")


def holder_of(model: nn.Module) -> str | None:
    """The attribute in which a module holds a network; None where it holds none."""
    fields = ((name, getattr(model, name, None)) for name in HOLDERS)
    held = (name for name, value in fields if isinstance(value, nn.Module))
    return next(held, None)


def nested(model: nn.Module) -> Iterator[nn.Module]:
    """The module, the network that it holds, what that holds, to the innermost."""
    yield model
    if (name := holder_of(model)) is not None:
        yield from nested(getattr(model, name))


def inner(model: nn.Module) -> nn.Module:
    """The network within all that holds it; the module itself where it holds none."""
    *_, innermost = nested(model)
    return innermost
