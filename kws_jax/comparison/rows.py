"""The rows of a comparison: what the seeds of one experiment have measured."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kws_jax import condition_names
from kws_jax import config as configs
from kws_jax.condition_names import CLEAN, FAR, SEEN, UNSEEN
from kws_jax.errors import UserError
from kws_jax.evaluation.metrics import clustered_interval, paired_bootstrap
from kws_jax.report.workdir import Measure, Run, read_run
from kws_jax.stage_fields import FINDS_GENOTYPE
from kws_jax.workdirs import in_bucket, read_arrays

# In what the runs of one row may differ.
_OF_A_SEED = ("seed", "data.seed", "seeds_at_once")
# Measures of the network that was trained, not of its test.
_OF_TRAINING = (
    *("parameters", "macs", "seconds"),
    *("weight_bits", "activation_bits", "packed_bytes"),
)
# Before a word, in the metric of how much of it alone is taken for a keyword.
_UNHEARD_WORD = "false_accept/unheard/"
# What decides what is heard in a test: in each, in noise, in a kind of it, far away.
_OF_EACH_TEST = (
    *(f"data.{name}" for name in ("source", "protocol", "keywords", "silence")),
    # Clips of other words stand for the unknown ones then.
    *("data.task_seed", "data.unheard_words"),
)
_OF_NOISE = ("evaluation.seed", "data.noise_hours")
_OF_A_KIND = {
    SEEN: ("data.noise_seen", "data.noise_test_fraction"),
    UNSEEN: ("data.noise_unseen",),
}
_OF_ROOMS = (
    *("evaluation.seed", "data.rooms"),
    *("data.rooms_test_fraction", "data.simulated_rooms"),
)
# A difference, and its 95 % interval, as fractions.
Difference = tuple[float, tuple[float, float]]


@dataclasses.dataclass
class Row:
    """The runs of one experiment under several seeds."""

    name: str
    named: Path  # the first folder that was given for it
    folders: list[Path]
    runs: list[Run]
    # Of each run: condition -> was each clip answered right?  bool [n].
    correct: list[Mapping[str, np.ndarray]]
    labels: list[np.ndarray]  # int [n] of each run

    @property
    def group(self) -> str:
        """What networks of one colour have in common: search, filters, front end, bits.

        Networks whose layers the config names were found by no search of theirs.
        """
        config = self.runs[0].config
        name = config["network"]["name"]
        if config.get("search"):
            name = config["search"]["method"] if self.searched else "given"
        front = (config.get("front_filter") or {}).get("name", "none")
        name = name if front == "none" else f"{front} > {name}"
        return _joined(name, _frontend_name(config), _bits_name(config))

    @property
    def searched(self) -> bool:
        """Whether the network was found, and is one of a search's curve."""
        network = self.runs[0].config["network"]
        given = network.get("genotype") or network.get("layers")
        return bool(self.runs[0].config.get("search")) and not given

    def values(self, metric: str, condition: str = CLEAN) -> list[float]:
        """A measure of the last stage's network in each run."""
        return [m.value for m in self._measures(metric, condition)]

    def interval_over_words(self, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of the mean over the runs, where words are drawn anew.

        It tells what these networks would do with other words, not what other seeds
        would. None where the runs do not say that words were counted together, or where
        they differ in which.

        Args:
          metric: a share of the clips of unheard words, such as "false_accept/unheard".
        """
        told = self._measures(metric, CLEAN)
        words = {measure.words for measure in told}
        if len(told) < len(self.runs) or len(words) != 1 or words == {()}:
            return None
        (named,) = words
        each = [self._measures(f"{_UNHEARD_WORD}{word}", CLEAN) for word in named]
        if any(len(measures) < len(self.runs) for measures in each):
            return None
        shares = np.array([[m.value for m in measures] for measures in each])
        counts = np.array([measures[0].count for measures in each])
        return clustered_interval(shares.mean(1) * counts, counts)

    def _measures(self, metric: str, condition: str) -> list[Measure]:
        stage = str(self.runs[0].config["stages"][-1]["name"])
        return [
            m
            for run in self.runs
            for m in run.results
            if (m.metric, m.condition, m.stage) == (metric, condition, stage)
            and (m.split == "test" or metric in _OF_TRAINING)
        ]

    def kinds(self) -> dict[str, list[float]]:
        """Kind of noise ("seen", …, "far unseen") -> its SNRs in dB, rising."""
        return {
            kind: [snr for snr, _ in curve]
            for kind, curve in self.runs[0].noise().items()
        }

    def seconds(self, *, searching: bool) -> list[float]:
        """Time of the stages that search, or of all others, in each run that tells."""
        totals = []
        for run in self.runs:
            searches = {
                str(stage["name"])
                for stage in run.config["stages"]
                if stage["kind"] in FINDS_GENOTYPE
            }
            told = (m for m in run.seconds() if (m.stage in searches) == searching)
            totals.append(sum(m.value for m in told))
        return [total for total in totals if total]

    def holds(self, folder: Path) -> bool:
        """Whether one of its runs is in `folder`."""
        return place_of(folder) in map(place_of, self.folders)

    def share_right(self, conditions: Sequence[str]) -> np.ndarray | None:
        """How often each clip was answered right over runs and conditions, [n].

        None where a run was not tested in one of them.
        """
        if any(c not in right for right in self.correct for c in conditions):
            return None
        return np.mean([right[c] for right in self.correct for c in conditions], axis=0)

    def difference(
        self, other: "Row", conditions: Sequence[str] = (CLEAN,)
    ) -> Difference | None:
        """By how much this row is more often right, by a paired bootstrap over clips.

        The interval does not hold the spread of the seeds. None where one of the two
        was not tested in these conditions.

        Raises:
          OtherClipsError: where they were tested on other clips, or in other noise.
        """
        if len(self._tests(conditions) | other._tests(conditions)) > 1:
            raise OtherClipsError
        a, b = self.share_right(conditions), other.share_right(conditions)
        return None if a is None or b is None else paired_bootstrap(a, b)

    def _tests(self, conditions: Sequence[str]) -> set[str]:
        return {
            _test_of(run, label, conditions)
            for run, label in zip(self.runs, self.labels, strict=True)
        }


class OtherClipsError(ValueError):
    """Answers to clips that are not the same have no difference clip by clip."""


def _test_of(run: Run, label: np.ndarray, conditions: Sequence[str]) -> str:
    """What tells tests apart, as far as their workdirs know it.

    Clips of one source and task whose labels are alike, one by one, are taken to be the
    same.
    """
    fields = configs.fields(ConfigDict(run.config))
    test: dict[str, Any] = {"labels": label.tolist()}
    for name in {name for condition in conditions for name in _deciding(condition)}:
        # What earlier versions did not have is empty in later ones.
        test |= {
            n: v
            for n, v in fields.items()
            if f"{n}.".startswith(f"{name}.") and v not in ("", None)
        }
    return json.dumps(test, sort_keys=True)


def _deciding(condition: str) -> Iterator[str]:
    """Fields of the config that decide what is heard in a condition."""
    yield from _OF_EACH_TEST
    if noise := condition_names.parse(condition):
        yield from _OF_NOISE
        yield from _OF_A_KIND.get(noise[0].removeprefix(FAR), ())
    if condition.startswith(FAR):
        yield from _OF_ROOMS


def read_rows(workdirs: Sequence[Path]) -> list[Row]:
    """The rows of the table, in the order in which they are first named.

    Raises:
      UserError: for a workdir without results.
    """
    rows: dict[str, Row] = {}
    for named, folder in folders_of(workdirs):
        fields = configs.fields(configs.load_workdir(folder, flag=""))
        same = {n: v for n, v in fields.items() if n not in _OF_A_SEED}
        key = json.dumps(same, sort_keys=True)
        row = rows.setdefault(key, Row(_name(folder), named, [], [], [], []))
        row.folders.append(folder)
        row.runs.append(read_run(folder))
        label, correct = _answers(folder / "predictions.npz")
        row.labels.append(label)
        row.correct.append(correct)
    names = [row.name for row in rows.values()]
    for row in rows.values():
        if names.count(row.name) > 1:
            row.name += f" ({row.named.name})"
    return list(rows.values())


def folders_of(workdirs: Sequence[Path], flag: str = "") -> Iterator[tuple[Path, Path]]:
    """Each workdir with that of its network, or in turn of its seeds' networks.

    None twice, however often and however it is named. They were given after `flag`.
    """
    seen = set()
    for named in workdirs:
        for folder in configs.seed_folders(configs.load_workdir(named, flag), named):
            if place_of(folder) not in seen:
                seen.add(place_of(folder))
                yield named, folder


def place_of(folder: Path) -> str:
    """One text for a folder, however it is named."""
    return str(folder if in_bucket(folder) else folder.resolve())


def _answers(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The labels of the test clips, and which were answered right in each condition."""
    try:
        answers = read_arrays(path)
        label = answers.pop("label")
        right = {
            name: np.asarray(answer == label)
            for name, answer in answers.items()
            if answer.shape == label.shape
        }
        if CLEAN not in right:
            raise ValueError("it has no answers to the clean clips")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): run `python -m kws_jax.main` with this "
            "workdir to its end, or leave the workdir out"
        ) from error
    return label, right


def _name(folder: Path) -> str:
    config = configs.load_workdir(folder)
    name = _joined(_network_name(config), _bits_name(config))
    front = config.get("front_filter", {}).get("name", "none")
    return name if front == "none" else f"{front} > {name}"


def _network_name(config: ConfigDict) -> str:
    if "search" in config:
        kinds = {stage.kind for stage in config.stages}
        given = config.network.get("genotype") or config.network.get("layers")
        if given:
            return str(given)
        method = "random" if "random_search" in kinds else str(config.search.method)
        # Front ends are part of what is compared in that space alone.
        mbconv = config.network.name == "mbconv"
        return _joined(method, _frontend_name(config) if mbconv else "")
    width = config.network.get("width", 1.0)
    return f"{config.network.name} ×{width:g}"


def _frontend_name(config: Mapping[str, Any]) -> str:
    """Such as "sinc60"; "" where a workdir does not tell."""
    frontend = config.get("frontend") or {}
    sizes = ("num_filters", "num_coefficients", "num_mel")
    size = next((frontend[s] for s in sizes if s in frontend), "")
    return f"{frontend.get('name', '')}{size}"


def _bits_name(config: Mapping[str, Any]) -> str:
    """Such as "w4a4", of a network that was quantised in the end; else ""."""
    last = config["stages"][-1]
    if last["kind"] != "quantize":
        return ""
    bits = last["bits"]
    if bits["learned"]:
        return "learned bits"
    return f"w{bits['weights']}a{bits['activations']}"


def _joined(*words: str) -> str:
    return " ".join(filter(None, words))
