"""The first layer of networks that hear the waveform: SincConv, or free filters.

References: Peter, Roth and Pernkopf, "End-to-end Keyword Spotting using Neural
Architecture Search and Quantization", ICASSP 2022 (arXiv 2104.06666), Table 1 (i);
Ravanelli and Bengio, "SincNet", SLT 2018, for the form of the filters.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kws_jax.models.layers import pytorch_init
from kws_jax.ops.sinc_filters import POSTS, bands, mel_bands, sinc_filters


class SincConv(nn.Module):
    """Band-pass filters whose edges are learned, then the post-function.

    Parameters "low" and "band" [f], in units of `unit_hz`: low edge = |low| +
    min_low_hz, high edge = low edge + |band| + min_band_hz, up to half the sample rate
    whatever they are. At first the bands are those of `mel_bands`, so widened.
    Attributes are the settings of `kws_jax.frontends.waveform.sinc`.
    """

    taps: int = 400
    sample_rate: int = 16_000
    num_filters: int = 60
    low_hz: float = 30.0
    high_hz: float = 7900.0
    min_low_hz: float = 50.0
    min_band_hz: float = 50.0
    unit_hz: float = 100.0
    window_function: str = "hamming"
    post: str = "log1p_abs"

    def setup(self) -> None:
        """Makes the parameters."""
        low, high = mel_bands(self.num_filters, self.low_hz, self.high_hz)

        def start(value: np.ndarray) -> Any:
            return lambda key: jnp.asarray(value / self.unit_hz, jnp.float32)

        self.low = self.param("low", start(low))
        self.band = self.param("band", start(high - low))

    def edges(self) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
        """Lower and upper edge (Hz) of each filter: 0 < low < high <= Nyquist."""
        return bands(
            self.low * self.unit_hz,
            self.band * self.unit_hz,
            min_low_hz=self.min_low_hz,
            min_band_hz=self.min_band_hz,
            limit_hz=self.sample_rate / 2,
        )

    def filters(self) -> Float[Array, "w f"]:
        """The taps of each filter, with the window."""
        return sinc_filters(
            *self.edges(),
            taps=self.taps,
            sample_rate=self.sample_rate,
            window=self.window_function,
        )

    def __call__(self, frames: Float[Array, "b t w"]) -> Float[Array, "b t f"]:
        """Features of frames of the waveform."""
        return POSTS[self.post](_filtered(frames, self.filters()))


class FreeConv(nn.Module):
    """The same with a kernel [w, f] that is learned tap by tap.

    Attributes are the settings of `kws_jax.frontends.waveform.conv1d`.
    """

    taps: int = 400
    sample_rate: int = 16_000
    num_filters: int = 60
    first_filters: str = "uniform"
    first_gain: float = 1.0
    post: str = "log1p_abs"

    def setup(self) -> None:
        """Makes the parameter."""

        def start(key: jax.Array) -> jax.Array:
            if self.first_filters == "uniform":
                first = pytorch_init(key, (self.taps, self.num_filters))
            else:
                first = self._mel_filters()
            return self.first_gain * first

        self.kernel = self.param("kernel", start)

    def _mel_filters(self) -> Float[Array, "w f"]:
        """What a SincConv with the settings of its own begins with."""
        layer = SincConv(self.taps, self.sample_rate, self.num_filters)
        frames = jnp.zeros((1, 1, self.taps))
        variables = layer.init(jax.random.key(0), frames)
        filters: Any = layer.apply(variables, method="filters")
        return filters

    def filters(self) -> Float[Array, "w f"]:
        """The kernel."""
        return self.kernel

    def __call__(self, frames: Float[Array, "b t w"]) -> Float[Array, "b t f"]:
        """Features of frames of the waveform."""
        return POSTS[self.post](_filtered(frames, self.kernel))


class WithFrontend(nn.Module):
    """A network behind filters that are learned with it.

    Its inputs are frames of the waveform where those of `encoder` are features.
    """

    frontend: nn.Module
    encoder: nn.Module

    @property
    def head(self) -> nn.Module:
        """The encoder's own."""
        encoder: Any = self.encoder
        return encoder.head

    def embed(
        self, frames: Float[Array, "b t w"], *, train: bool, **told: Any
    ) -> Float[Array, "b d"]:
        """Embedding of each clip; `told` is handed to the encoder."""
        encoder: Any = self.encoder
        return encoder.embed(self.frontend(frames), train=train, **told)

    def __call__(
        self, frames: Float[Array, "b t w"], *arguments: Any, train: bool, **told: Any
    ) -> Float[Array, "b k"]:
        """Logits; `arguments` and `told` are handed to the encoder."""
        return self.encoder(self.frontend(frames), *arguments, train=train, **told)


def create_filters(
    name: str, settings: Mapping[str, Any], taps: int
) -> SincConv | FreeConv | None:
    """The learned layer of the front end `name`; None for one that learns nothing.

    Args:
      name: of the front end.
      settings: all of the front end's settings.
      taps: length w of its frames in samples.
    """
    layers: dict[str, Any] = {"sinc": SincConv, "conv1d": FreeConv}
    if name not in layers:
        return None
    fields = layers[name].__dataclass_fields__
    own = {key: value for key, value in settings.items() if key in fields}
    return layers[name](taps=taps, **own)


def _filtered(frames: jax.Array, filters: jax.Array) -> jax.Array:
    return jnp.dot(frames, filters, precision=jax.lax.Precision.HIGHEST)
