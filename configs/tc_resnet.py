"""TC-ResNet: temporal convolutions for keyword spotting, the baseline of AutoKWS.

Choi et al., "Temporal Convolution for Real-time Keyword Spotting on Mobile Devices",
Interspeech 2019, arXiv 1904.03814.

    python -m kws_jax.main --config=configs/tc_resnet.py:14-1.5 --workdir=runs/tc14

Words after the colon: 8 (default), 8-1.5, 14, 14-1.5 choose depth and width;
paper (default), cpu, demo the size, as in configs/autokws.py.

The paper reports on Speech Commands v1 (12 labels): TC-ResNet8 96.1 %, TC-ResNet14-1.5
96.6 %. What this project measures, and on which data, stands in README.md.
"""

from ml_collections import ConfigDict

from configs import common

NETWORKS = ("8", "8-1.5", "14", "14-1.5")
SIZES = ("paper", "cpu", "demo")


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment for the words after the colon."""
    chosen = common.parse(argument, {"network": NETWORKS, "size": SIZES})
    depth, _, width = chosen["network"].partition("-")
    config = common.base("tc_resnet")
    config.network = ConfigDict(
        {
            "name": f"tc_resnet{depth}",
            "width": float(width or 1),
            "dropout": 0.5,
            # What running statistics keep at each step.
            "batch_norm_momentum": 0.997,
        }
    )
    train = common.train_stage()
    if chosen["size"] != "paper":
        common.shorten(config, train, demo=chosen["size"] == "demo")
    config.stages = (train,)
    return config.lock()
