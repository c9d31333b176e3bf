"""The three sources of speech behind one function."""

from collections.abc import Mapping
from typing import Any

from kws_jax.data import store
from kws_jax.data.corpus import Corpus
from kws_jax.data.protocols import get_protocol
from kws_jax.errors import UserError, nearest

SOURCES = ("tfds", "folder", "synthetic")


def open_corpus(
    source: str,
    *,
    data_dir: str = "",
    cache_dir: str = "",
    protocol: str = "custom",
    skip_corrupt: bool = False,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    synthetic: Mapping[str, Any] | None = None,
    download: bool = True,
    progress: store.Progress | None = None,
) -> Corpus:
    """Opens a source; what is not prepared yet is prepared into a store first.

    Args:
      source: "tfds", "folder" or "synthetic".
      data_dir: the folder of clips, or the folder of TFDS ("" for its default).
      cache_dir: where stores are kept, see `store.cache_root`.
      protocol: names the version of Speech Commands and the builder for "tfds".
      skip_corrupt: for "folder", see `folder.open_folder`.
      validation_fraction: for "folder".
      test_fraction: for "folder".
      synthetic: settings of `synthetic.synthesize_corpus`.
      download: for "tfds", whether what is missing may be downloaded.
      progress: called with (clips done, all clips) while a store is written.

    Raises:
      UserError: an unknown source, or what the source finds wrong.
    """
    if source == "tfds":
        from kws_jax.data.tfds_source import open_tfds

        rule = get_protocol(protocol)
        return open_tfds(
            data_dir,
            version=rule.version or "0.02",
            builder=rule.builder,
            cache_dir=cache_dir,
            download=download,
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

        return synthesize_corpus(cache_dir, **(synthetic or {}), progress=progress)
    raise UserError(
        f"unknown config.data.source {source!r}; {nearest(source, SOURCES)}"
    )
