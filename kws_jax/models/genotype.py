"""The description of a searched network, as data: which operations stand in each layer.

Reference: Zhang et al., "AutoKWS: Keyword Spotting with Differentiable Architecture
Search", ICASSP 2021 (arXiv 2009.03658).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from kws_jax.errors import UserError, nearest
from kws_jax.workdirs import folder_of

SKIP = "SKIP"
KERNELS = (3, 5, 7, 9)
# "C5SE": TC block of kernel 5 with squeeze-and-excitation; "SKIP": identity.
OPERATIONS = (*(f"C{k}{se}" for k in KERNELS for se in ("", "SE")), SKIP)
SHORTCUTS = ("1x1", "jx1")

# TC-ResNet14 at width 1.5
STRIDES = (2, 1, 2, 1, 2, 1)
CHANNELS = (36, 36, 48, 48, 72, 72)
STEM_CHANNELS = 24
_LARGEST = 65_536  # of all numbers in a genotype


def parse_operation(operation: str) -> tuple[int, bool]:
    """Kernel (frames), and whether with squeeze-and-excitation: "C5SE" -> (5, True)."""
    return int(operation.removesuffix("SE")[1:]), operation.endswith("SE")


@dataclasses.dataclass(frozen=True)
class Genotype:
    """A network of the AutoKWS space.

    Attributes:
      layers: for each layer the names of its operations, whose outputs are summed.
      strides: stride over time of each layer.
      channels: output channels of each layer.
      stem_channels: output channels of the stem.
      shortcut: kernel of a reduction layer's shortcut, "1x1" or "jx1" (the block's).
      se_reduction: channels per hidden unit of squeeze-and-excitation.

    Raises:
      UserError: the parts do not fit together.
    """

    layers: tuple[tuple[str, ...], ...]
    strides: tuple[int, ...] = STRIDES
    channels: tuple[int, ...] = CHANNELS
    stem_channels: int = STEM_CHANNELS
    shortcut: str = "1x1"
    se_reduction: int = 4

    def __post_init__(self):
        _check_skeleton(self)
        inputs = (self.stem_channels, *self.channels[:-1])
        for index, operations in enumerate(self.layers):
            same_shape = (
                self.strides[index] == 1 and inputs[index] == self.channels[index]
            )
            _check_layer(f"layers[{index}]", operations, skip_allowed=same_shape)

    def to_json(self) -> str:
        """The genotype as JSON text, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "genotype") -> "Genotype":
        """The genotype told by JSON `text`; `source` names it in messages.

        Raises:
          UserError: not JSON, an unknown or missing field, or a genotype that does not
            fit together.
        """
        try:
            fields = json.loads(text)
            return cls.from_dict(fields, source)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{source} is not JSON ({error}). Expected a genotype as a search "
                "saves it."
            ) from error

    @classmethod
    def from_dict(
        cls, fields: Mapping[str, Any], source: str = "genotype"
    ) -> "Genotype":
        """The genotype of a mapping from field to (nested lists of) values.

        Raises:
          UserError: no mapping, an unknown or missing field, or a genotype that does
            not fit together.
        """
        if not isinstance(fields, Mapping):
            raise UserError(f"{source}: expected an object with field 'layers'.")
        known = [field.name for field in dataclasses.fields(cls)]
        for field in fields:
            if field not in known:
                raise UserError(
                    f"{source}: no field {field!r}: {nearest(field, known)}"
                )
        if "layers" not in fields:
            raise UserError(f"{source}: field 'layers' is missing.")
        try:
            return cls(**{field: _tuples(value) for field, value in fields.items()})
        except UserError as error:
            raise UserError(f"{source}: {error}") from error


def load_genotype(name_or_path: str | pathlib.Path) -> Genotype:
    """A published genotype by name, or one saved as JSON by path.

    Raises:
      UserError: neither a published name nor a readable genotype file.
    """
    known = published()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = folder_of(name_or_path)
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise UserError(
            f"genotype {str(name_or_path)!r} is neither a readable file ({error}) nor "
            f"the name of a published network: {nearest(str(name_or_path), known)}"
        ) from error
    return Genotype.from_json(text, source=str(path))


def published() -> dict[str, Genotype]:
    """The networks found on Speech Commands V1 (AutoKWS, Fig. 3), by name."""
    layers = {
        "autokws-darts": "C5 SKIP C5 SKIP C3SE SKIP",
        "autokws-fairdarts": "C7SE C9SE+C5SE C3SE C5 C7 SKIP",
        "autokws-noisydarts": "C9SE C3SE C9 SKIP C5SE SKIP",
    }
    return {
        name: Genotype(tuple(tuple(layer.split("+")) for layer in text.split()))
        for name, text in layers.items()
    }


def _tuples(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(item) for item in value)
    return value


def _check_skeleton(genotype: Genotype) -> None:
    for field in ("layers", "strides", "channels"):
        if not isinstance(getattr(genotype, field), tuple):
            raise UserError(f"field {field!r} must be a list with one entry a layer.")
    expected = len(genotype.strides)
    for field in ("layers", "channels"):
        found = len(getattr(genotype, field))
        if found != expected:
            raise UserError(
                f"field {field!r} has {found} entries, expected {expected}: one for "
                f"each of the strides {genotype.strides}."
            )
    sizes = (*genotype.strides, *genotype.channels)
    for size in (*sizes, genotype.stem_channels, genotype.se_reduction):
        whole = isinstance(size, int) and not isinstance(size, bool)
        if not whole or not 1 <= size <= _LARGEST:
            raise UserError(
                "strides, channels, stem_channels and se_reduction must be positive "
                f"whole numbers, at most {_LARGEST}, got {str(size)[:50]}."
            )
    if genotype.shortcut not in SHORTCUTS:
        raise UserError(
            f"shortcut {genotype.shortcut!r} is unknown: "
            f"{nearest(str(genotype.shortcut), SHORTCUTS)}"
        )


def _check_layer(field: str, operations: Any, *, skip_allowed: bool) -> None:
    if not isinstance(operations, tuple) or not operations:
        raise UserError(f"{field} must be a list of at least one operation name.")
    for operation in operations:
        if operation not in OPERATIONS:
            raise UserError(
                f"{field}: unknown operation {operation!r}: "
                f"{nearest(str(operation), OPERATIONS)}"
            )
    if len(set(operations)) != len(operations):
        raise UserError(f"{field} names an operation twice: {list(operations)}.")
    if SKIP in operations and not skip_allowed:
        raise UserError(
            f"{field}: SKIP stands in a layer that changes the number of frames or "
            "channels; use a TC block there."
        )
