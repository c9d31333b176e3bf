"""Front ends by name, with their settings checked before anything is compiled."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int16

from kws_jax.errors import UserError, nearest
from kws_jax.frontends.log_mel import log_mel
from kws_jax.frontends.mfcc import mfcc
from kws_jax.frontends.waveform import conv1d, sinc

FRONTENDS: dict[str, Callable[..., jax.Array]] = {
    "conv1d": conv1d,
    "log_mel": log_mel,
    "mfcc": mfcc,
    "sinc": sinc,
}

_CLIP_SAMPLES = 16_000
_INT16_SCALE = 1 / 32768


@dataclasses.dataclass(frozen=True)
class Frontend:
    """A front end with all its settings; build one with `create_frontend`.

    Attributes:
      name: its name in the registry.
      settings: all keyword arguments of the function, defaults included, so that an
        exported model says completely how its features are made.
      shape: (t, f), frames and features of one second of audio; features are samples
        where the filters belong to the network ("sinc", "conv1d").
    """

    name: str
    # Two front ends that differ in the settings are unequal; dicts have no hash.
    settings: Mapping[str, Any] = dataclasses.field(hash=False)
    shape: tuple[int, int]

    def __call__(
        self, audio: Int16[Array, "b s"] | Float[Array, "b s"]
    ) -> Float[Array, "b t f"]:
        """Features float32 [b, t, f] of audio [b, s]; int16 is divided by 32768."""
        return FRONTENDS[self.name](as_float(audio), **self.settings)


def as_float(audio: Int16[Array, "b s"] | Float[Array, "b s"]) -> Float[Array, "b s"]:
    """Audio in [-1, 1]: int16 is divided by 32768, float is what it is."""
    if jnp.issubdtype(audio.dtype, jnp.integer):
        return audio.astype(jnp.float32) * _INT16_SCALE
    return audio


def create_frontend(name: str, **settings: Any) -> Frontend:
    """The front end called `name`, its defaults overridden by `settings`.

    Args:
      name: "mfcc", "log_mel", "sinc" or "conv1d".
      **settings: keyword arguments of the function of that name.

    Returns:
      A callable, jittable front end that knows its output shape.

    Raises:
      UserError: for an unknown name or setting, a value of the wrong type, or settings
        that contradict each other.
    """
    if name not in FRONTENDS:
        raise UserError(f"There is no front end {name!r}; {nearest(name, FRONTENDS)}")
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(FRONTENDS[name]).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    types = inspect.get_annotations(FRONTENDS[name])
    for setting, value in settings.items():
        if setting not in defaults:
            raise UserError(
                f"The front end {name!r} has no setting {setting!r}; "
                f"{nearest(setting, defaults)}"
            )
        _check_type(name, setting, value, types[setting])
    complete = defaults | settings
    clip = jax.ShapeDtypeStruct((1, _CLIP_SAMPLES), jnp.float32)
    features = jax.eval_shape(lambda audio: FRONTENDS[name](audio, **complete), clip)
    return Frontend(name, complete, features.shape[1:])


def _check_type(name: str, setting: str, value: Any, expected: type) -> None:
    accepted = (int, float) if expected is float else expected
    if not isinstance(value, accepted) or (
        isinstance(value, bool) and expected is not bool
    ):
        raise UserError(
            f"The setting {setting!r} of the front end {name!r} must be of type "
            f"{expected.__name__}, not {value!r}."
        )
