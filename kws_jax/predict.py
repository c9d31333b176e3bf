"""Names the keyword in audio files: `python -m kws_jax.predict --workdir=W PATH…`.

Prints one JSON line for each file: path, keyword, score, and the probability of every
label. A PATH is a file or a folder (searched for audio). A recording longer than a
second is heard in windows of a second, four a second; the window in which a keyword is
most probable counts.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging

from kws_jax import command_line, runtime
from kws_jax import config as configs
from kws_jax.errors import UserError
from kws_jax.evaluation import answers

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished experiment.")
# Windows asked about at once: bounds the memory for a long recording, and the number of
# programs to compile to two.
_WINDOWS = 64


def in_groups(probabilities: Callable[[Any], Any], clips: np.ndarray) -> np.ndarray:
    """Probabilities [n, k] of clips [n, s]: one alone, more in groups of one size."""
    if len(clips) == 1:
        return np.asarray(probabilities(clips))
    padded = np.pad(clips, ((0, -len(clips) % _WINDOWS), (0, 0)))
    groups = np.split(padded, len(padded) // _WINDOWS)
    return np.concatenate([probabilities(group) for group in groups])[: len(clips)]


def find_files(paths: list[str]) -> list[Path]:
    """The audio files that `paths` name; folders are searched.

    Raises:
      UserError: for a path that does not exist or a folder without audio.
    """
    from kws_jax.data.audio_files import find_audio

    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"There is no file or folder {str(path)!r}.")
        files = find_audio(path, recursive=True) if path.is_dir() else [path]
        if not files:
            raise UserError(f"The folder {str(path)!r} holds no audio files.")
        found += files
    return found


def predictions(workdir: Path, files: list[Path]) -> Iterator[dict]:
    """One answer for each file, in order."""
    from kws_jax.data.audio_files import read_audio
    from kws_jax.data.corpus import CLIP_SAMPLES
    from kws_jax.parts import load_setup
    from kws_jax.stages import dispatch

    logging.set_verbosity(logging.WARNING)
    network = dispatch.finished_network(load_setup(workdir), workdir)
    for path in files:
        clips = answers.windows(read_audio(path), CLIP_SAMPLES)
        heard = in_groups(network.probabilities, clips)
        yield answers.answer(path, network.labels, heard)


def main(argv: list[str]) -> None:
    """Checks the flags, then prints the answers."""
    if not _WORKDIR.value or not argv[1:]:
        raise UserError("Give --workdir=DIR and at least one audio file or folder.")
    workdir = Path(_WORKDIR.value)
    config = configs.load_workdir(workdir)
    files = find_files(argv[1:])
    runtime.configure(config.data.cache_dir)
    for answer in predictions(workdir, files):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    command_line.run(main)
