"""The names of searched operations, read: 'C9SE', 'SKIP'."""

import dataclasses
import re

_TC_BLOCK = re.compile(r"^C(\d+)(SE)?$")


@dataclasses.dataclass(frozen=True)
class Operation:
    """A candidate operation; `kernel` is None for skip and for unknown names."""

    name: str
    kernel: int | None
    squeeze: bool
    skip: bool

    @property
    def css(self) -> str:
        """The CSS classes of its colour and dash."""
        colour = f"k{self.kernel}" if self.kernel else "skip" if self.skip else "k0"
        return f"{colour} squeeze" if self.squeeze else colour


def parse(name: str) -> Operation:
    """Reads a name; one that is no TC block and no skip is shown by its name alone."""
    match = _TC_BLOCK.match(name)
    return Operation(
        name=name,
        kernel=int(match[1]) if match else None,
        squeeze=bool(match and match[2]),
        skip=name.lower() in ("skip", "identity"),
    )
