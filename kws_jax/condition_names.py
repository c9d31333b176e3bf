"""What the conditions of a test are called: "clean", "seen 20 dB", "far unseen -5 dB".

Results, predictions and detection are told by these names, and reports and comparisons
find them by these again. No JAX here.
"""

import re

CLEAN = "clean"
# Before the name of a condition, or of a kind, whose clips are heard through a room.
FAR = "far "
# Kinds of noise: such as training hears too, and others.
SEEN, UNSEEN = "seen", "unseen"
_NOISY = re.compile(r"^(?P<kind>.+?)\s+(?P<snr>[-−]?\d+(?:\.\d+)?(?:e-?\d+)?)\s*dB$")


def level(snr: float) -> str:
    """A signal-to-noise ratio (dB) as names have it: "-5 dB"."""
    return f"{snr:g} dB"


def noisy(kind: str, snr: float) -> str:
    """The condition with noise of a kind ("seen", "far seen", …) at an SNR (dB)."""
    return f"{kind} {level(snr)}"


def parse(name: str) -> tuple[str, float] | None:
    """The kind of noise, "far " before it where it is far, and the SNR (dB).

    None for a condition without noise.
    """
    match = _NOISY.match(name)
    return (match["kind"], float(match["snr"].replace("−", "-"))) if match else None


def clean_of(kind: str) -> str:
    """The condition without noise at the place, near or far, of a kind of noise."""
    return FAR + CLEAN if kind.startswith(FAR) else CLEAN
