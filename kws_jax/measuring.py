"""What is measured anew of an experiment that is trained already."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict
from rich.console import Console

from kws_jax import config as configs
from kws_jax import experiment, heard, together
from kws_jax.errors import UserError
from kws_jax.parts import TASK_FILE, Parts, build_parts, load_setup
from kws_jax.report.page import write_report
from kws_jax.report.terminal import print_detection, print_results
from kws_jax.stages import detection, runner
from kws_jax.training.checkpoints import saving, write_json, write_text
from kws_jax.training.workdir_lock import WorkdirLock
from kws_jax.workdirs import folder_of, in_bucket, read_json, write_whole


def evaluate(
    config: ConfigDict, folder: Path, output: str = "", output_dir: str = ""
) -> list[dict[str, Any]]:
    """Tests the trained network of `folder` on the data and conditions of `config`.

    Prints a table; writes the rows to the file `output`, if named. Leaves in
    `output_dir`, if named, what `kws_jax.compare` reads of a workdir: `config`, the
    answers to each clip, and the rows after those of the training (parameters,
    operations, seconds). Nothing in `folder` changes.

    Raises:
      UserError: where the data has other labels than the network, `output_dir` holds
        something already, or `output` cannot be written.
    """
    console = Console(highlight=False)
    logging.set_verbosity(logging.ERROR)
    into = _fresh_folder(output_dir) if output_dir else None
    # After the folder was made, in which it may be.
    file = _file_for_rows(output) if output and together.is_first() else None
    parts = parts_of_trained(config, folder, console)
    rows = experiment.final_test(parts, folder, into)
    if together.is_first():
        print_results(rows, console)
        if file is not None:
            _write_rows(rows, file)
        if into is not None:
            _keep(parts.config, rows, folder, into)
    return rows


def _fresh_folder(address: str) -> Path:
    """The folder of an address, in which nothing is yet; made where there is none."""
    folder = folder_of(address)
    # Before any process has written into it: the test itself is made by all together.
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"--output_dir={address} holds something already: name a new folder."
        )
    together.wait("look at the folder of an evaluation")
    if together.is_first():
        with saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
    return folder


def _file_for_rows(address: str) -> Path:
    """The file of an address, in a folder that exists."""
    file = folder_of(address)
    if file.is_dir():
        raise UserError(f"--output={address} is a folder; give the name of a file.")
    # Buckets have no folders.
    if not in_bucket(file) and not file.absolute().parent.is_dir():
        raise UserError(
            f"--output={address}: the folder {file.parent} does not exist; make it "
            "first."
        )
    return file


def _write_rows(rows: list[dict[str, Any]], file: Path) -> None:
    try:
        write_whole(file, json.dumps(rows, indent=1).encode())
    except OSError as error:
        raise UserError(
            f"--output={file} cannot be written ({error}); name a file in a folder "
            "that may be written and has room, and run the test again."
        ) from error


def _keep(
    config: ConfigDict, rows: list[dict[str, Any]], folder: Path, into: Path
) -> None:
    """Makes of `into`, in which the answers are, what `compare` can read."""
    write_text(into / "config.json", configs.to_json(config))
    results = folder / "results.json"
    stored = read_json(results) if results.exists() else []
    training = [row for row in stored if row["split"] == "train"]
    write_json(into / "results.json", training + rows)
    genotype = folder / "genotype.json"
    if genotype.exists():
        write_text(into / genotype.name, genotype.read_text())


def detect(config: ConfigDict, folder: Path) -> None:
    """Measures the trained network of `folder` on continuous audio of its data.

    Writes `detection.json` with the threshold, puts the rows into `results.json` in
    place of former ones, and draws the report anew.

    Raises:
      UserError: where the final test has not been run, the data has other labels than
        the network, or its clips make no such audio.
    """
    console = Console(highlight=False)
    logging.set_verbosity(logging.ERROR)
    # Before the data are opened: what is measured must have its place.
    _results(folder)
    parts = parts_of_trained(config, folder, console)
    with WorkdirLock(folder):
        _detect(parts, folder, console)


def _detect(parts: Parts, folder: Path, console: Console) -> None:
    rows = detection.measure(parts, folder, console)
    kept = [row for row in _results(folder) if not detection.is_row(row)]
    write_json(folder / "results.json", kept + rows)
    with saving(folder / "report.html"):
        write_report(folder)
    print_detection(folder, console)


def _results(folder: Path) -> list[dict[str, Any]]:
    """The rows of the final test in a workdir."""
    results = folder / "results.json"
    if not results.exists():
        raise UserError(
            f"{folder} holds no results.json: its final test has not been run. Run "
            "kws_jax.main with this --workdir first."
        )
    rows: list[dict[str, Any]] = read_json(results)
    return rows


def parts_of_trained(config: ConfigDict, folder: Path, console: Console) -> Parts:
    """The parts of `config`, if its labels are those of the network in `folder`.

    Raises:
      UserError: the network is not trained to its end, or the data has other labels,
        names words as unheard that training heard, or has clips, noise or rooms in the
        test that training heard.
    """
    trained = load_setup(folder)
    runner.last_finished(trained, folder)
    heard.check_clips(config.data, trained.config)
    parts = build_parts(config, console)
    if parts.labels != trained.labels:
        raise UserError(
            f"The network knows the labels {', '.join(trained.labels)}; this data has "
            f"{', '.join(parts.labels)}. Choose data.keywords and data.protocol so "
            "that they agree, in the same order."
        )
    _check_unheard(parts, trained.config, read_json(folder / TASK_FILE))
    heard.check_sounds(parts, folder, trained.config)
    return parts


def _check_unheard(
    parts: Parts, trained: ConfigDict, stored: Mapping[str, Any]
) -> None:
    """Raises UserError where training heard other words than the test would say."""
    # Versions that kept no "clips" had them in the fingerprint of all data.
    same = "clips" if "clips" in stored else "fingerprint"
    data = parts.config.data
    # A folder may have grown since.
    if parts.identity()[same] != stored[same] and not heard.same_folder(
        data.dir, trained.data.dir
    ):
        return
    wanted = set(configs.words(data.unheard_words))
    kept = set(configs.words(trained.data.unheard_words))
    if wanted - kept:
        raise UserError(
            f"data.unheard_words names {', '.join(sorted(wanted - kept))}, which were "
            "not kept from training in this workdir. Train again with them in "
            "config.data.unheard_words, or leave them out here."
        )
    if kept - wanted:
        raise UserError(
            f"data.unheard_words lacks {', '.join(sorted(kept - wanted))}, which were "
            "kept from training in this workdir: they would count as words that it "
            "heard. Name them here too, or leave the field as it was."
        )
