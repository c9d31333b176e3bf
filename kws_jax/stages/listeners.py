"""How a trained network listens to continuous audio: in windows, or frame by frame."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kws_jax.errors import UserError, nearest
from kws_jax.evaluation import detection
from kws_jax.evaluation.detection import Heard, Rule
from kws_jax.evaluation.frame_scores import heard_frames
from kws_jax.evaluation.windows import posteriors
from kws_jax.models.registry import MODELS
from kws_jax.parts import Setup
from kws_jax.stages.networks import Network
from kws_jax.training import sharding

AUTO, WINDOWS, FRAMES = "auto", "windows", "frames"
SCORES = (AUTO, WINDOWS, FRAMES)


@dataclasses.dataclass(frozen=True)
class Listener:
    """A network that listens.

    Attributes:
      scores: what it gives: posteriors of WINDOWS, or log-odds of FRAMES.
      rule: how they become events.
      hear: int16 blocks of audio -> scores of the keywords.
    """

    scores: str
    rule: Rule
    hear: Callable[[Iterable[np.ndarray]], Heard]


def check(setup: Setup) -> None:
    """Raises UserError for scores that the config's network does not have."""
    wanted = _wanted(setup.config)
    if wanted not in SCORES:
        raise UserError(
            f"config.detection.scores = {wanted!r} is unknown; "
            f"{nearest(wanted, SCORES)}"
        )
    name = setup.config.network.name
    if wanted == FRAMES and not hasattr(MODELS[name][0], "stream"):
        raise _no_frames(name)


def scores_of(setup: Setup, network: Network) -> str:
    """WINDOWS or FRAMES: what config.detection.scores asks of the network.

    Raises:
      UserError: see `check`.
    """
    check(setup)
    wanted = _wanted(setup.config)
    if wanted == AUTO:
        return FRAMES if network.stream else WINDOWS
    if wanted == FRAMES and not network.stream:
        raise _no_frames(setup.config.network.name)
    return wanted


def rule_of(setup: Setup, network: Network, scores: str) -> Rule:
    """The rule of the config; frames have a hop of their own and are not smoothed.

    Raises:
      UserError: see `Rule`.
    """
    rule = windows_rule(setup.config)
    if scores == FRAMES and network.stream:
        return dataclasses.replace(rule, hop_ms=network.stream.hop_ms, smoothing_ms=0.0)
    return rule


def windows_rule(config: ConfigDict) -> Rule:
    """The rule of the config as it stands.

    Raises:
      UserError: see `Rule`.
    """
    fields = [field.name for field in dataclasses.fields(Rule)]
    return Rule(**{name: config.detection[name] for name in fields})


def create_listener(
    setup: Setup, network: Network, scores: str, rule: Rule
) -> Listener:
    """A network that listens for the keywords.

    Raises:
      UserError: FRAMES of a network that scores none.
    """
    if scores == WINDOWS:
        ask = probabilities(setup, network)

        def hear(blocks: Iterable[np.ndarray]) -> Heard:
            heard = posteriors(ask, blocks, rule.hop)
            return detection.heard(heard, setup.labels, setup.keywords, rule)

        return Listener(scores, rule, hear)
    scorer = network.stream
    if scorer is None:
        raise _no_frames(setup.config.network.name)
    return Listener(
        scores, rule, lambda blocks: heard_frames(scorer, blocks, setup.keywords)
    )


def probabilities(setup: Setup, network: Network) -> Callable[[np.ndarray], Any]:
    """int16 [b, 16000] -> probabilities [b, k], a batch shared by all devices."""

    def ask(audio: np.ndarray) -> Any:
        padded = np.pad(audio, ((0, -len(audio) % setup.mesh.size), (0, 0)))
        batch = sharding.shard({"audio": padded}, setup.mesh)
        return np.asarray(network.predict(batch))[: len(audio)]

    return ask


def _wanted(config: ConfigDict) -> str:
    # Experiments of versions that knew windows alone have no such field.
    return config.detection.get("scores", AUTO)


def _no_frames(name: str) -> UserError:
    able = [known for known, (model, _) in MODELS.items() if hasattr(model, "stream")]
    return UserError(
        f"config.detection.scores = {FRAMES!r}, but the network {name!r}, as it is "
        f"here, gives no scores frame by frame; {', '.join(able)} does. Set it to "
        f"{AUTO!r} or {WINDOWS!r}."
    )
