"""ConvMixer: its training recipe, and its curriculum of noise and rooms.

Ng et al., "ConvMixer: Feature Interactive Convolution with Curriculum Learning for
Small Footprint and Noisy Far-field Keyword Spotting", ICASSP 2022, arXiv 2201.05863.

    python -m kws_jax.main --config=configs/convmixer.py --workdir=runs/convmixer

Words after a colon, separated by commas, choose

    curriculum (default), multicondition, clean    the stages
    conv_mixer (default), tc_resnet8, searched, …  the network, as in configs/network.py
    din, no_din, dynamic_conv, light_conv    a filter, as in configs/dynamic_filter.py
    paper (default), cpu, demo                     the size

`curriculum` trains in five stages: clean; clean and 0 dB; and -5 dB; and -10 dB; and
half of the clips in rooms. Each ends when the criterion of the paper's Algorithm 1 has
not exceeded its best for ten epochs (`cpu`: six, `demo`: two), or at its most epochs,
and the next begins from its best state. The first epoch is not counted, so in `cpu`
only the last stage is long enough to end before its most epochs, in `demo` only the
first.
`multicondition` trains in the conditions of the last stage from the start, for as many
epochs as the curriculum may take; `clean` without noise. Of all three clips are mixed
in the first 85 % of these epochs.

`paper` takes TFDS Speech Commands and 200 epochs at most, as the text says (the
official code: 100). `cpu` is for some ten thousand clips on two cores, with 36 epochs
at most, half of them in the last stage; `demo` makes its own speech, has no rooms (its
last stage is the one before it once more) and ends in minutes. Noise and rooms come
from config.data: the paper takes MUSAN and the BUT reverb database; without a word from
the user it is the source's own background and simulated rooms (extra `rooms`).

From the official code: binary cross-entropy, Adam (rate, betas, L2), × 0.85 after the
5th, 9th, … 69th epoch, mixup of half of the clips, masks of 1 … 25 that are 0 before
the features are normalised. Different here: partners of mixup are neighbours in the
batch, a random part of the set, where that code draws them from the set; clips that are
mixed get no noise at 50 dB, and keep their level, which that code sets to 44 dB above
the noise's own; the waveform is shifted by ±100 ms, as in the text, where that code
turns the frames by -10 … +9.

Left open by the paper, and chosen here: a validation whose accuracy and loss are both
the best so far is progress, though its criterion only equals the best (stop.ties);
history and best of the criterion begin anew in each stage (stop.resets); validation
hears the stage's noise and rooms (validation); optimiser and schedule go on
(optimizer_start); 200 epochs are the most of all stages together, 40 for each; mixup
ends within the curriculum where it does outside, as in the code: after 85 % of the
epochs that all stages may take, so in its last stage. The other networks have their own
front ends, whose masked cells are 0.

The paper reports on Speech Commands v2, 12 labels: 98.20 % clean with and without the
curriculum. Through rooms, clean and at 20, 0, -5 and -10 dB, 93.16, 90.83, 83.04, 78.39
and 71.88 % with it, and 90.38, 87.85, 78.10, 72.78 and 66.50 % without. What this
project measures, and on which data, stands in README.md.
"""

from ml_collections import ConfigDict

from configs import common
from configs.dynamic_filter import FILTERS
from configs.network import CLASSIFIERS, choose_classifier

NETWORKS: dict[str, dict] = {
    "conv_mixer": CLASSIFIERS["conv_mixer"],
    **CLASSIFIERS,
}
PLANS = ("curriculum", "multicondition", "clean")
SIZES = ("paper", "cpu", "demo")
# Stage -> the SNRs (dB) that are heard in it, beside clean clips.
CURRICULUM: dict[str, tuple[float, ...]] = {
    "clean": (),
    "snr0": (0.0,),
    "snr-5": (0.0, -5.0),
    "snr-10": (0.0, -5.0, -10.0),
    "rooms": (0.0, -5.0, -10.0),
}
# Size -> the most epochs of each stage of the curriculum, and patience in validations.
_EPOCHS: dict[str, tuple[float, ...]] = {
    "paper": (40.0,) * 5,
    "cpu": (6.0, 4.0, 4.0, 4.0, 18.0),
    "demo": (8.0, 3.0, 3.0, 3.0, 3.0),
}
_PATIENCE = {"paper": 10, "cpu": 6, "demo": 2}
# The part of the training in which clips are mixed: 85 of the official 100 epochs.
_MIXED = 0.85
# The schedule of the official code is one of 100 epochs, and that of a shorter training
# is as much shorter.
_STEP_EPOCHS = tuple(range(5, 70, 4))
_OFFICIAL_EPOCHS = 100
# (0 - mean)/(2·deviation) of the log-mel front end: what 0 becomes when normalised.
_MASKED_LOG_MEL = 8.522078 / (2 * 4.0515576)


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment for the words after the colon."""
    chosen = common.parse(
        argument,
        {
            "plan": PLANS,
            "network": tuple(NETWORKS),
            "filter": ("", *(word for word in FILTERS if word != "tenet")),
            "size": SIZES,
        },
    )
    name, size = chosen["network"], chosen["size"]
    config = common.base("convmixer")
    choose_classifier(config, name, NETWORKS[name])
    if chosen["filter"]:
        config.front_filter = ConfigDict(FILTERS[chosen["filter"]])
    if size != "paper":
        # Few steps: the running statistics must follow sooner.
        config.network.batch_norm_momentum = min(
            config.network.batch_norm_momentum, 0.9 if size == "demo" else 0.99
        )
    if size == "demo":
        config.data.source = "synthetic"
    elif chosen["plan"] != "clean":
        config.data.rooms = "simulated"
    config.stages = _stages(chosen["plan"], size, name)
    return config.lock()


def _stages(plan: str, size: str, network: str) -> tuple[ConfigDict, ...]:
    epochs, last = _EPOCHS[size], list(CURRICULUM)[-1]
    if plan != "curriculum":
        stage = _stage(sum(epochs), "clean" if plan == "clean" else last, size, network)
        stage.name = "train"
        stage.mixup.until = _MIXED
        return (stage,)
    stages, before = [], 0.0
    for name, most in zip(CURRICULUM, epochs):
        stage = _stage(most, name, size, network)
        stage.stop.update(rule="criterion", patience=_PATIENCE[size])
        mixed = (_MIXED * sum(epochs) - before) / most
        stage.mixup.until = min(max(round(mixed, 3), 0.0), 1.0)
        stages.append(stage)
        before += most
    return tuple(stages)


def _stage(epochs: float, conditions: str, size: str, network: str) -> ConfigDict:
    """Training in the conditions of a stage of the curriculum, each equally often."""
    stage = common.train_stage()
    snr_db = CURRICULUM[conditions]
    stage.update(
        name=conditions,
        epochs=epochs,
        steps=0,
        batch_size=128,
        validation="condition",
        objective="binary_cross_entropy",
        optimizer_start="continue",
    )
    stage.condition.update(
        background_probability=0.0,
        snr_db=snr_db,
        clean_fraction=1 / (1 + len(snr_db)),
        reverberant_fraction=0.5 if conditions == "rooms" and size != "demo" else 0.0,
    )
    stage.optimizer = _adam(
        1.0 if size == "paper" else sum(_EPOCHS[size]) / _OFFICIAL_EPOCHS
    )
    stage.spec_augment = common.spec_augment(masks=1)
    stage.spec_augment.update(
        time_width=25,
        frequency_width=25,
        min_width=1,
        fill=_MASKED_LOG_MEL if network == "conv_mixer" else 0.0,
    )
    stage.mixup.probability = 0.5
    return stage


def _adam(scale: float) -> ConfigDict:
    """The official optimiser, its schedule made `scale` times as long."""
    optimizer = common.tc_resnet_sgd()
    optimizer.update(
        name="adam",
        learning_rate=6e-3,
        schedule="epoch_step",
        step_epochs=tuple(epoch * scale for epoch in _STEP_EPOCHS),
        step_factor=0.85,
        b1=0.95,
        b2=0.999,
        weight_decay=5e-7,
        decay_all=True,
    )
    return optimizer
