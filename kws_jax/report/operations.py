"""The names of searched operations, read: 'C9SE', 'E6K7', 'SKIP'."""

import dataclasses
import re

# "C9SE", a TC block, or "E6K7", an inverted bottleneck of expansion 6 and kernel 7
_BLOCK = re.compile(r"^(?:C|E(?P<expansion>\d+)K)(?P<kernel>\d+)(?P<squeeze>SE)?$")


@dataclasses.dataclass(frozen=True)
class Operation:
    """A candidate operation; `kernel` is None for skip and for unknown names.

    `expansion` is that of an inverted bottleneck, None for other operations.
    """

    name: str
    kernel: int | None
    squeeze: bool
    skip: bool
    expansion: int | None = None

    @property
    def css(self) -> str:
        """The CSS classes of its colour and dash."""
        colour = f"k{self.kernel}" if self.kernel else "skip" if self.skip else "k0"
        return f"{colour} squeeze" if self.squeeze else colour


def parse(name: str) -> Operation:
    """Reads a name; one that is no block and no skip is shown by its name alone."""
    match = _BLOCK.match(name)
    return Operation(
        name=name,
        kernel=int(match["kernel"]) if match else None,
        squeeze=bool(match and match["squeeze"]),
        expansion=int(match["expansion"]) if match and match["expansion"] else None,
        skip=name.lower() in ("skip", "identity"),
    )
