"""Names the keyword in audio files: `python -m kws_jax.predict --workdir=W PATH…`.

Prints one JSON line for each file: path, keyword, score, and the probability of every
label. A PATH is a file or a folder (searched for audio). A recording longer than a
second is heard in windows of a second, four a second; the window in which a keyword is
most probable counts.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from absl import flags, logging

from kws_jax import command_line, runtime
from kws_jax import config as configs
from kws_jax.errors import UserError
from kws_jax.workdirs import folder_of

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished experiment.")


def predictions(workdir: Path, files: list[Path]) -> Iterator[dict]:
    """One answer for each file, in order."""
    from kws_jax.data.audio_files import read_audio
    from kws_jax.evaluation.windows import answer, heard_in
    from kws_jax.parts import load_setup
    from kws_jax.stages import dispatch

    logging.set_verbosity(logging.WARNING)
    network = dispatch.finished_network(load_setup(workdir), workdir)
    for path in files:
        heard = heard_in(network.probabilities, read_audio(path))
        yield answer(path, network.labels, heard)


def main(argv: list[str]) -> None:
    """Checks the flags, then prints the answers."""
    from kws_jax.data.audio_files import find_files

    if not _WORKDIR.value or not argv[1:]:
        raise UserError("Give --workdir=DIR and at least one audio file or folder.")
    workdir = folder_of(_WORKDIR.value)
    config = configs.load_single(workdir)
    files = find_files(argv[1:])
    runtime.configure(config.data.cache_dir)
    for answer in predictions(workdir, files):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    command_line.run(main)
