"""The three sources of speech behind one function."""

from typing import Any

from kws_jax.config import SOURCES
from kws_jax.data import store
from kws_jax.data.corpus import Corpus
from kws_jax.data.protocols import get_protocol
from kws_jax.errors import UserError, nearest


def open_corpus(
    source: str,
    *,
    data_dir: str = "",
    cache_dir: str = "",
    protocol: str = "custom",
    builder: str = "",
    skip_corrupt: bool = False,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    progress: store.Progress | None = None,
    **synthetic: Any,
) -> Corpus:
    """Opens a source; what is not prepared yet is prepared into a store first.

    Args:
      source: "tfds", "folder" or "synthetic".
      data_dir: the folder of clips, or the folder of TFDS ("" for its default).
      cache_dir: where stores are kept, see `runtime.cache_root`.
      protocol: for "tfds", names the builder; see `protocols.PROTOCOLS`.
      builder: for "tfds", see `tfds_source.open_tfds`; "" for the protocol's own.
      skip_corrupt: for "folder", see `folder.open_folder`.
      validation_fraction: for "folder".
      test_fraction: for "folder".
      progress: called with (clips done, all clips) while a store is written.
      synthetic: for "synthetic", settings of `synthetic.synthesize_corpus`.

    Raises:
      UserError: an unknown source, a builder that does not go with the protocol, or
        what the source finds wrong.
    """
    if source == "tfds":
        from kws_jax.data.tfds_source import open_tfds

        return open_tfds(
            data_dir,
            builder=_builder(builder, protocol),
            cache_dir=cache_dir,
            progress=progress,
        )
    if source == "folder":
        from kws_jax.data.folder import open_folder

        if not data_dir:
            raise UserError(
                "config.data.dir is empty. Set it to the folder with WORD/*.wav: "
                "--config.data.dir=…"
            )
        return open_folder(
            data_dir,
            cache_dir=cache_dir,
            skip_corrupt=skip_corrupt,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            progress=progress,
        )
    if source == "synthetic":
        from kws_jax.data.synthetic import synthesize_corpus

        return synthesize_corpus(cache_dir, progress=progress, **synthetic)
    raise UserError(
        f"unknown config.data.source {source!r}; {nearest(source, SOURCES)}"
    )


def _builder(builder: str, protocol: str) -> str:
    """The TFDS builder for a protocol, "" being its usual one."""
    defined_on = get_protocol(protocol).builders
    if builder and defined_on and builder not in defined_on:
        raise UserError(
            f"config.data.builder={builder!r} does not go with "
            f"config.data.protocol={protocol!r}, which is defined on "
            f"{' or '.join(defined_on)}"
        )
    return builder or (defined_on[0] if defined_on else "speech_commands_v2")
