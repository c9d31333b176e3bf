"""Any network under one recipe, that of TC-ResNet.

    python -m kws_jax.main --config=configs/network.py:res15,cpu --workdir=runs/res15

Words after the colon: the network, tenet12 (default), tenet6, tenet12_narrow,
tenet6_narrow, res15, res15_narrow, conv_mixer, mbconv, searched, acoustic_dnn,
tc_resnet8 or tc_resnet14 (as in configs/tc_resnet.py, which has their widths); mtconv,
for a TENet that is trained with four parallel kernels and used with one (a quantised
one keeps its four, as configs/quantized.py trains them); and the size, paper (default),
cpu or demo, as in configs/autokws.py. `searched` is a network of the
AutoKWS space that is given, by `--config.network.genotype`. For fair comparisons of
architectures, and to begin with; no paper's own recipe but TC-ResNet's is here. The
papers report on Speech
Commands: TENet12 96.6 % (v1), res15 95.8 % (v1), ConvMixer 98.2 % (v2, 12 labels), the
MBConv network that Peter et al. found 95.55 % (v1). What this project measures, and on
which data, stands in README.md.
"""

from ml_collections import ConfigDict

from configs import common
from kws_jax.errors import UserError

_TENET = {
    # Four parallel temporal convolutions, of kernels 3, 5, 7 and 9; one in inference.
    "mtconv": False,
    "dropout": 0.5,
    "batch_norm_momentum": 0.99,
}
_ACOUSTIC = {
    # HMM states of each keyword; beside them are background and silence.
    "states": 6,
    "hidden": 64,
    "depth": 5,
    # Frames on either side: ±9, 19 in all.
    "context": 9,
    # Factor of log-likelihoods in scores.
    "acoustic_scale": 0.1,
    "batch_norm_momentum": 0.99,
}
_RES15 = {"batch_norm_momentum": 0.9}
# network -> its settings (kws_jax/models/registry.py)
NETWORKS: dict[str, dict] = {
    "tenet12": _TENET,
    "tenet6": _TENET,
    "tenet12_narrow": _TENET,
    "tenet6_narrow": _TENET,
    "res15": _RES15,
    "res15_narrow": _RES15,
    "conv_mixer": {"channels": 64, "dropout": 0.0, "batch_norm_momentum": 0.9},
    "acoustic_dnn": _ACOUSTIC,
    "mbconv": {
        # Of the six searched layers: E1K3 … E6K7, or SKIP but in the first and fourth.
        "layers": ("E6K7",) * 6,
        # Widths as multiples of 8, as in the authors' code.
        "round_widths": False,
        # 'relu6' (the authors' code) or 'relu' (their text).
        "activation": "relu6",
        "batch_norm_momentum": 0.9,
    },
    "searched": {
        # A published name, or the JSON file that a search has left.
        "genotype": "autokws-noisydarts",
        "dropout": 0.5,
        "batch_norm_momentum": 0.997,
    },
}
TC_RESNET = {"width": 1.0, "dropout": 0.5, "batch_norm_momentum": 0.997}
TC_RESNETS = {"tc_resnet8": TC_RESNET, "tc_resnet14": TC_RESNET}
# Those that answer for a clip as a whole, which other losses, front ends, filters and
# quantised training ask for: acoustic_dnn learns states frame by frame.
CLASSIFIERS = TC_RESNETS | NETWORKS
del CLASSIFIERS["acoustic_dnn"]
# The temporal convolutions of a TENet in training: of one kernel, or of four.
CONVOLUTIONS = ("", "mtconv")
SIZES = ("paper", "cpu", "demo")


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment for the words after the colon."""
    known = NETWORKS | TC_RESNETS
    groups = {
        "network": tuple(known),
        "convolutions": CONVOLUTIONS,
        "size": SIZES,
    }
    chosen = common.parse(argument, groups)
    name, size = chosen["network"], chosen["size"]
    config, train = common.base(name), common.train_stage()
    choose(config, train, name, known[name])
    if chosen["convolutions"]:
        if "mtconv" not in config.network:
            raise UserError(
                f"'mtconv' is of TENets, and the network is {name!r}: leave it out, or "
                f"choose one of {', '.join(n for n in NETWORKS if 'tenet' in n)}."
            )
        config.network.mtconv = True
    if size != "paper":
        common.shorten(config, train, demo=size == "demo")
    config.stages = (train,)
    return config.lock()


def choose(config: ConfigDict, train: ConfigDict, name: str, settings: dict) -> None:
    """Sets the network, and what it needs of the front end and of its training."""
    choose_classifier(config, name, settings)
    if name == "acoustic_dnn":
        config.frontend = common.acoustic_mfcc()
        train.alignment = common.alignment()
        # Its layers have no batch norm between them, which 0.1 is made for.
        train.optimizer.learning_rate = 0.02


def choose_classifier(config: ConfigDict, name: str, settings: dict) -> None:
    """Sets one of CLASSIFIERS, and its front end."""
    config.network = ConfigDict({"name": name, **settings})
    if name == "conv_mixer":
        config.frontend = common.log_mel()
