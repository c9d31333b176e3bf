"""A lightweight dynamic filter before a network, and what it is compared with.

Kim et al., "A Lightweight Dynamic Filter for Keyword Spotting", ICASSPW 2023, arXiv
2109.11165 (code: DDonghyeonKim/Lightweight-Dynamic-Filter).

    python -m kws_jax.main --config=configs/dynamic_filter.py --workdir=runs/filter

Words after a colon, separated by commas, choose

    din (default)    the dynamic filter with dynamic instance norm
    no_din           the same with a static one, the paper's ablation
    tenet            no filter
    dynamic_conv     dynamic convolution (Chen et al. 2020)
    light_conv       lightweight convolution (Wu et al. 2019)
    tenet12 (default), tenet6, tc_resnet8, res15, …    the network, and
    mtconv           four parallel kernels of a TENet, as in configs/network.py
    float (default), w8a8 … w1a1, learned_bits, few_bits    how the network is
                                            quantised in the end; its filter stays in
                                            float
    paper (default), cpu, demo              the size

`paper` has the paper's recipe: batches of 100, 30,000 steps of Adam at 0.001, divided
by ten at each 10,000. L2 and dropout are those of TENet's code. The paper tests on both
versions of Speech Commands with 12 labels: `--config.data.protocol=v1-12` or `v2-12`;
the default is TFDS's own. It does not say which TENet it filters, nor how large the two
other convolutions are and where they stand: here they filter the features too, at
about the size of the dynamic filter. Whether its TENets have MTConv is not said either:
without the word they have not. configs/convmixer.py takes the same words for filters;
elsewhere `--config.front_filter.name=dynamic` puts one with its default settings before
the network, but for acoustic_dnn and searches of ProxylessNAS. Small training sets are
made by `--config.data.train_fraction=0.1`; the shares that the paper tries are not
known here.

The paper reports, without noise in training but the softly added background, accuracy
on one of the two versions (which is not known) in noise of DCASE at 20 and 0 dB: with
DIN 97.24 and 90.08 %, without 97.01 and 89.05 %, dynamic convolution 96.80 and 87.71 %,
lightweight convolution 96.94 and 87.66 %, TENet 96.79 and 87.36 %. On the other: 97.08
and 90.64, 97.17 and 90.42, 96.90 and 89.18, 97.07 and 89.53, 97.10 and 89.20 %. What
this project measures, and on which data, stands in README.md.
"""

from ml_collections import ConfigDict

from configs import common, network, quantized
from kws_jax.errors import UserError

# word -> the front filter (kws_jax/models/front_filter.py)
FILTERS: dict[str, dict] = {
    # Whether scale and shift of its norm come from the clip.
    "din": {"name": "dynamic", "din": True},
    "no_din": {"name": "dynamic", "din": False},
    "tenet": {"name": "none"},
    "dynamic_conv": {
        "name": "dynamic_conv",
        "kernels": 4,
        # Frames; groups of features; whether the features are added: not in the paper.
        "kernel_size": 3,
        "groups": 4,
        "residual": True,
        # Of the attention: falls to 1 over these epochs.
        "temperature": 30.0,
        "temperature_epochs": 10.0,
    },
    "light_conv": {
        "name": "light_conv",
        # Frames; heads of features; whether linear layers stand around it; whether the
        # features are added: not in the paper.
        "kernel_size": 7,
        "heads": 8,
        "gated": True,
        "residual": True,
    },
}
NETWORKS = (*network.NETWORKS, *network.TC_RESNETS)
SIZES = ("paper", "cpu", "demo")


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment for the words after the colon."""
    chosen = common.parse(
        argument,
        {
            "filter": tuple(FILTERS),
            "network": NETWORKS,
            "convolutions": network.CONVOLUTIONS,
            "bits": quantized.FLOAT_OR_BITS,
            "size": SIZES,
        },
    )
    plain = chosen["filter"] == "tenet" and chosen["bits"] == quantized.FLOAT
    if chosen["network"] not in network.CLASSIFIERS and not plain:
        raise UserError(
            f"The network {chosen['network']!r} takes MFCCs as they are and trains in "
            f"float, not with {chosen['filter']!r} and {chosen['bits']!r}: say "
            f"'tenet', which is no filter, and {quantized.FLOAT!r}, or choose another "
            f"network: {', '.join(network.CLASSIFIERS)}."
        )
    words = f"{chosen['network']},{chosen['convolutions']}"
    config = network.get_config(words).unlock()
    config.name = f"{chosen['network']} behind {chosen['filter']}"
    if chosen["filter"] == "tenet":
        config.name = chosen["network"]
    config.front_filter = ConfigDict(FILTERS[chosen["filter"]])
    train = config.stages[0]
    train.optimizer.update(name="adam", learning_rate=0.001, weight_decay=4e-5)
    if chosen["size"] != "paper":
        common.shorten(config, train, demo=chosen["size"] == "demo")
    if chosen["bits"] != quantized.FLOAT:
        config = quantized.add_quantization(config, chosen["bits"])
    return config.lock()
