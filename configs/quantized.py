"""Any network of the project, trained and then quantised.

After Peter, Roth and Pernkopf, "End-to-end Keyword Spotting using Neural Architecture
Search and Quantization", ICASSP 2022, arXiv 2104.06666.

    python -m kws_jax.main --config=configs/quantized.py:w4a4,cpu --workdir=runs/w4a4

Words after the colon, separated by commas, choose

    w8a8 (default), w1a1 … w8a8       bits of weights (w) and activations (a)
    learned_bits                      each layer learns its own, from 8 down to 2
    few_bits                          the same, at most 3 in the mean
    tc_resnet8 (default), tc_resnet14, mbconv, tenet12, …    the network, and
    mtconv                            four parallel kernels of a TENet, as in
                                      configs/network.py; it keeps them
    paper (default), cpu, demo        the size, as in configs/autokws.py

The network is trained as configs/network.py does, and goes on
with quantised weights and activations for a third of that. Quantisers are the paper's:
weights signed with the scale max |w|, activations with a learned scale; the weight of
learned bits in the loss is 0.04. Rates and length of its quantised training are not
known, those here are this project's: a third of the float training's length, at its
rate, or a tenth of it from 5 bits on.

`few_bits` is what met that bound here: a scale for each channel, as long as the float
training, bits that learn in its first half and then stand still, and λ_w = 0.15, λ_a =
0.2. These two, the penalties of the mean bits, are to be tried for another network:
the input features alone may be two fifths of the activations.

The paper reports (Speech Commands, its searched network of 75.7 k parameters): 95.55 %
in float, 93.76 % with learned bits (in the mean 2.51 a weight, 2.91 an activation),
90.35 % with 2 bits each. What this project measures, and on which data, stands in
README.md.
"""

from ml_collections import ConfigDict

from configs import common, network

NETWORKS = tuple(network.CLASSIFIERS)
SIZES = ("paper", "cpu", "demo")
LEARNED, FEW = "learned_bits", "few_bits"
_WIDTHS = range(8, 0, -1)
# Of a stage of training; quantised training has no use for them.
_OF_FLOAT_TRAINING = (
    "stop",
    "optimizer_start",
    "mixup",
    "trained_part",
    "data_parameters",
)
BITS = (*(f"w{w}a{a}" for w in _WIDTHS for a in _WIDTHS), LEARNED, FEW)
# Bits as other configs offer them: in float unless it is asked for.
FLOAT = "float"
FLOAT_OR_BITS = (FLOAT, *BITS)


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment for the words after the colon."""
    groups = {
        "bits": BITS,
        "network": NETWORKS,
        "convolutions": network.CONVOLUTIONS,
        "size": SIZES,
    }
    words = common.parse(argument, groups)
    of_network = ("network", "convolutions", "size")
    config = network.get_config(",".join(words[group] for group in of_network))
    config = add_quantization(config, words["bits"])
    config.name = "quantized"
    return config.lock()


def add_quantization(config: ConfigDict, bits: str) -> ConfigDict:
    """The experiment with a stage behind its last, which trains; `bits` of BITS."""
    config = config.copy_and_resolve_references().unlock()
    stage = quantize_stage(config.stages[-1], bits)
    # What stands before the network stays in float in any case: filters whose taps
    # depend on the clip, and those that are learned tap by tap. It is named since the
    # configs of experiments that have begun name it.
    if config.front_filter.name != "none":
        stage.keep_float += ("front_filter/*",)
    if config.frontend.name == "conv1d":
        # As SincConv, whose filters are made of two edges each, does.
        stage.keep_float += ("frontend/kernel",)
    config.stages = (*config.stages, stage)
    return config


def quantize_stage(train: ConfigDict, bits: str) -> ConfigDict:
    """Quantised training under a stage's conditions, a third as long or as long."""
    stage = train.copy_and_resolve_references().unlock()
    stage.update(
        name="quantize",
        kind="quantize",
        steps=train.steps // 3,
        epochs=train.epochs / 3,
    )
    for field in _OF_FLOAT_TRAINING:
        del stage[field]
    stage.bits = _bits(bits)
    # Few bits begin far from the float network, and need the rate of training: of
    # TC-ResNet8 (`cpu`, seed 0) w2a2 ended at 63.1 % with it, at 53.7 % with a tenth.
    # From which number of bits on a tenth is better was not searched.
    fewest = min(stage.bits.weights, stage.bits.activations)
    near = fewest > 4 and not stage.bits.learned
    stage.optimizer.update(
        learning_rate=(0.1 if near else 1.0) * train.optimizer.learning_rate,
        schedule="cosine",
        final_learning_rate=0.0,
        clip_norm=1.0,
    )
    # λ_w, λ_a: of the mean bits of a weight and of an activation in the loss.
    stage.weight_bits_penalty = 0.04
    stage.activation_bits_penalty = 0.04
    # Layers that stay in float, by patterns of names: ('*stem/*', '*head/*'). Behind a
    # front filter the network's own begin with 'network/', behind learned filters with
    # 'encoder/'. Filters themselves stay in float, and need not be named.
    stage.keep_float = ()
    # On which the ranges of activations are measured.
    stage.calibration_batches = 8
    # Of the learned ends of ranges (their logarithms), and of learned bits.
    stage.range_optimizer = _adam(1e-3)
    stage.bits_optimizer = _adam(0.02)
    if stage.bits.learned:
        # Ranges are measured for 8 bits; few bits want them several times smaller. Bits
        # that still fall in the last step are bits that no weight has learned with.
        stage.range_optimizer.learning_rate = 0.01
        stage.bits_optimizer.schedule = "cosine"
    if bits == FEW:
        stage.update(steps=train.steps, epochs=train.epochs)
        stage.update(weight_bits_penalty=0.15, activation_bits_penalty=0.2)
        stage.bits.per_channel = True
        stage.range_optimizer.schedule = "cosine"
        stage.bits_optimizer.update(schedule="step", step_at=(0.5,), step_factor=0.0)
    return stage


def _bits(word: str) -> ConfigDict:
    learned = word in (LEARNED, FEW)
    weights, activations = (8, 8) if learned else map(int, word[1:].split("a"))
    return ConfigDict(
        {
            # 1 to 8; where learned, 2 to `most`, to begin with.
            "weights": weights,
            "activations": activations,
            "learned": learned,
            "most": 8,
            # A scale for each channel of a layer's output, or one for all weights (the
            # paper's). With a batch norm behind it costs no byte, since that has scales
            # of channels anyway; at 2 bits it helps much.
            "per_channel": False,
        }
    )


def _adam(learning_rate: float) -> ConfigDict:
    settings = common.tc_resnet_sgd()
    settings.update(
        name="adam",
        learning_rate=learning_rate,
        schedule="constant",
        weight_decay=0.0,
    )
    return settings
