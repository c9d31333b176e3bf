"""The files of a run, read for reporting; nothing here is computed again."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kws_jax import condition_names
from kws_jax.condition_names import CLEAN
from kws_jax.errors import UserError
from kws_jax.workdirs import folder_of, read_arrays, read_json


@dataclasses.dataclass(frozen=True)
class Measure:
    """One row of results.json.

    `interval` is the 95 % interval where it was given, `words` are those that the row
    is about together.
    """

    stage: str
    split: str
    condition: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    count: int | None
    words: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a workdir tells about its run; absent files are empty or None.

    Attributes:
      workdir: where the files lie.
      config: config.json.
      results: results.json, one Measure per row.
      metrics: the lines of metrics.jsonl, one per (stage, split, step).
      architecture: the lines of architecture.jsonl, one per (stage, step).
      data_parameters: the lines of data_parameters.jsonl, one per (stage, step).
      data_parameter_summary: data_parameters.json, stage -> its last values.
      genotype: genotype.json of a searched network.
      evaluation: evaluation.json: labels and confusion matrices.
      detection: detection.json: thresholds, and the errors on continuous audio.
      embeddings: the arrays of embeddings.npz.
      filters: filters.json: bands and responses of a learned front end.
      arguments: command.json: what kws_jax.main was started with, the workdir left out.
    """

    workdir: Path
    config: Mapping[str, Any]
    results: Sequence[Measure]
    metrics: Sequence[Mapping[str, Any]] = ()
    architecture: Sequence[Mapping[str, Any]] = ()
    data_parameters: Sequence[Mapping[str, Any]] = ()
    data_parameter_summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    genotype: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    detection: Mapping[str, Any] | None = None
    embeddings: Mapping[str, np.ndarray] | None = None
    filters: Mapping[str, Any] | None = None
    arguments: Sequence[str] = ()

    @property
    def stages(self) -> list[str]:
        """Stage names in the order of the config, then those only seen in files."""
        named = [str(stage["name"]) for stage in self.config.get("stages") or ()]
        seen = [row.stage for row in self.results]
        seen += [str(line["stage"]) for line in self.metrics]
        return list(dict.fromkeys(named + seen))

    @property
    def keywords(self) -> list[str]:
        """The keywords of the config, comma-separated or a list there."""
        words = (self.config.get("data") or {}).get("keywords") or ""
        words = words.split(",") if isinstance(words, str) else words
        return [word for word in (str(w).strip() for w in words) if word]

    @property
    def final_stage(self) -> str | None:
        """The last stage whose clean test accuracy is known."""
        tested = {m.stage for m in self.results if _is_headline(m)}
        return next((s for s in reversed(self.stages) if s in tested), None)

    def find(self, metric: str, condition: str = CLEAN) -> Measure | None:
        """A measure of the final stage's test, or None."""
        return next(
            (m for m in self.final() if (m.metric, m.condition) == (metric, condition)),
            None,
        )

    def size(self, metric: str) -> Measure | None:
        """A measure that has no condition, such as 'parameters', of the last stage."""
        rows = [m for m in self.results if m.metric == metric]
        final = [m for m in rows if m.stage == self.final_stage]
        return max(
            final or rows, key=lambda m: self.stages.index(m.stage), default=None
        )

    def seconds(self) -> list[Measure]:
        """The training time of each stage, in the order of the stages."""
        rows = [
            m for m in self.results if m.metric == "seconds" and math.isfinite(m.value)
        ]
        return sorted(rows, key=lambda m: self.stages.index(m.stage))

    def final(self) -> Iterator[Measure]:
        """The finite test measures of the final stage."""
        for measure in self.results:
            here = measure.split == "test" and measure.stage == self.final_stage
            if here and math.isfinite(measure.value):
                yield measure

    def noise(self) -> dict[str, list[tuple[float, Measure]]]:
        """Kind of noise -> (SNR in dB, accuracy), by rising SNR, of the final stage.

        Kinds are "seen", "unseen", "far seen" and "far unseen", as far as there are.
        """
        curves: dict[str, list[tuple[float, Measure]]] = {}
        for measure in self.final():
            noise = condition_names.parse(measure.condition)
            if measure.metric == "accuracy" and noise:
                kind, snr = noise
                curves.setdefault(kind, []).append((snr, measure))
        return {
            kind: sorted(points, key=lambda point: point[0])
            for kind, points in curves.items()
        }

    def recalls(self) -> list[tuple[str, Measure]]:
        """(word, recall) of the final stage on clean test clips, in stored order."""
        return [
            (m.metric.removeprefix("recall/"), m)
            for m in self.final()
            if m.metric.startswith("recall/") and m.condition == CLEAN
        ]


def read_run(workdir: str | Path) -> Run:
    """Reads the files of `workdir`.

    Raises:
      UserError: config.json or results.json is missing, or a file cannot be read.
    """
    workdir = folder_of(workdir)
    results = workdir / "results.json"
    return Run(
        workdir=workdir,
        config=_read_json(workdir / "config.json", required=True),
        results=parse_results(_read_json(results, required=True), str(results)),
        metrics=_read_lines(workdir / "metrics.jsonl", ("stage", "split", "step")),
        architecture=_read_lines(workdir / "architecture.jsonl", ("stage", "step")),
        data_parameters=_read_lines(
            workdir / "data_parameters.jsonl", ("stage", "step")
        ),
        data_parameter_summary=_read_json(workdir / "data_parameters.json") or {},
        genotype=_read_genotype(workdir / "genotype.json"),
        evaluation=_read_json(workdir / "evaluation.json"),
        detection=_read_json(workdir / "detection.json"),
        embeddings=_read_arrays(workdir / "embeddings.npz"),
        filters=_read_json(workdir / "filters.json"),
        arguments=tuple(_read_json(workdir / "command.json") or ()),
    )


def parse_results(rows: Any, source: str) -> list[Measure]:
    """Rows as in results.json; `source` names them in messages.

    Raises:
      UserError: not a list of objects with stage, metric and value.
    """
    try:
        return [
            Measure(
                stage=row["stage"],
                split=row.get("split") or "",
                condition=row.get("condition") or "",
                metric=row["metric"],
                value=math.nan if row["value"] is None else float(row["value"]),
                interval=tuple(row["ci95"]) if row.get("ci95") else None,
                count=row.get("count"),
                words=tuple(row.get("words") or ()),
            )
            for row in rows
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: expected a list of objects with stage, metric and value "
            f"({error!r}): run `python -m kws_jax.main` with this workdir again"
        ) from error


def _is_headline(measure: Measure) -> bool:
    return (measure.metric, measure.split, measure.condition) == (
        "accuracy",
        "test",
        CLEAN,
    )


def _read_json(path: Path, required: bool = False) -> Any:
    if not path.exists():
        if required:
            raise UserError(
                f"{path} is missing: a report is made from a workdir in which "
                "`python -m kws_jax.main` has run; give that folder"
            )
        return None
    return read_json(path)


def _read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        return read_arrays(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove it, or run "
            "`python -m kws_jax.main` again with this workdir"
        ) from error


def _read_lines(path: Path, key: tuple[str, ...]) -> list[dict[str, Any]]:
    """One object per key, in the order of the file; the last of a key counts.

    Half a line, left by a kill or met while the run writes, is left out.
    """
    if not path.exists():
        return []
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_bytes().decode(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            found[tuple(entry[k] for k in key)] = entry
        except (KeyError, TypeError, ValueError):
            continue
    return list(found.values())


def _read_genotype(path: Path) -> dict[str, Any] | None:
    genotype = _read_json(path)
    if genotype is None:
        return None
    lengths = {k: len(genotype.get(k, ())) for k in ("layers", "strides", "channels")}
    if len(set(lengths.values())) != 1 or "stem_channels" not in genotype:
        raise UserError(
            f"{path}: expected layers, strides and channels of one length and "
            f"stem_channels, found lengths {lengths}: derive the genotype again"
        )
    return genotype
