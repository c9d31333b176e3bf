"""A program of the package whose gs:// addresses are those of a stand-in.

    python tests/bucket_program.py kws_jax.main --config=… --workdir=gs://bucket/run

The address of its server is in STORAGE_ADDRESS. Checkpoints go there through
TensorStore as ever. TensorBoard's files are left out: TensorFlow writes them, and knows
the real storage alone.
"""

import os
import runpy
import sys

from cloud_storage import Files
from etils.epath import gpath

from kws_jax.training import tensorboard

ADDRESS = os.environ["STORAGE_ADDRESS"]
# For TensorStore, and for Google's own library; without a token they would ask Google.
os.environ["TENSORSTORE_GCS_HTTP_URL"] = ADDRESS
os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
os.environ["STORAGE_EMULATOR_HOST"] = ADDRESS
os.environ["GOOGLE_CLOUD_PROJECT"] = "none"
# Else epath takes TensorFlow's file system.
gpath._is_tf_installed = lambda: False
gpath._PREFIX_TO_BACKEND["gs"] = Files(ADDRESS)


class _NoBoard:
    def __init__(self, directory):
        pass

    def write(self, prefix, step, metrics):
        pass

    def close(self):
        pass


tensorboard.TensorBoard = _NoBoard
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
