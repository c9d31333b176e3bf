"""Accuracy against the signal-to-noise ratio of several experiments."""

from collections.abc import Sequence

from kws_jax.comparison.rows import Row
from kws_jax.condition_names import noisy
from kws_jax.report import noise_curves
from kws_jax.report.markup import Markup


def draw(rows: Sequence[Row]) -> Markup | None:
    """See `noise_curves.draw`: a curve for each row."""
    kinds = dict.fromkeys(kind for row in rows for kind in row.kinds())
    curves = {kind: [_curve(row, kind) for row in rows] for kind in kinds}
    return noise_curves.draw([row.name for row in rows], curves)


def _curve(row: Row, kind: str) -> noise_curves.Curve:
    """The accuracies of a row in a kind of noise, by rising SNR."""
    return {
        snr: row.values("accuracy", noisy(kind, snr))
        for snr in row.kinds().get(kind, [])
    }
