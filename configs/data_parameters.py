"""Dynamic curriculum by data parameters: labels and clips with temperatures.

Higuchi, Saxena, Souden, Tran, Delfarah, Dhir, "Dynamic Curriculum Learning via Data
Parameters for Noise Robust Keyword Spotting", ICASSP 2021, arXiv 2102.09666, after
Saxena, Tuzel, DeCoste, "Data Parameters", NeurIPS 2019.

    python -m kws_jax.main --config=configs/data_parameters.py:joint,cpu \
      --workdir=runs/joint --config.data.noise_seen=NOISE

Words after the colon: joint (default), class, instance, or none, the same training
without them; the network, NETWORKS below (tc_resnet8 by default); the size, paper
(default), cpu or demo, as in configs/autokws.py. Half of the clips are heard in noise
at -10 … 10 dB, the SNRs of the paper; noise comes from the source's background
recordings where data.noise_seen is empty.

`acoustic_dnn` is the paper's own kind of network: 13 MFCCs of 19 frames, five layers of
64, outputs for the states of whole-word HMMs, trained frame by frame on alignments that
start flat; class parameters then belong to states. How many states a word had there is
not published; six a keyword is this project's choice. Detection (`kws_jax.detect`, or
--config.detection.final_test=True) asks it for the score of each keyword that may end
at a frame, which its HMMs give; the other networks hear a second at a time. Either way
the rows `frr@1fa/h` and `frr@10fa/h` are the false rejects at so many false alarms.

The paper has data of its own, about 500,000 clean and a million noisy utterances, and a
DNN-HMM, and reports the relative reduction of the false reject ratio at ten false
alarms an hour, against the same training without data parameters: trained on clean and
noisy speech 7.2 % (class), 4.1 % (instance), 7.7 % (joint); on clean speech alone 3.8 %
(class), and instance parameters made it worse. Its rates, decays and bounds are not
published: the defaults are those of Saxena et al.'s code, but for the rate of classes
(0.001, and 0.00001 for the states of acoustic_dnn), to be tried with

    --config.stages[0].data_parameters.class_learning_rate     0.00001 … 0.8
    --config.stages[0].data_parameters.instance_learning_rate  0.01, 0.1, 0.8
    --config.stages[0].data_parameters.class_decay             0, 1e-4

To see what the temperatures find, --config.data.flip_labels=0.1 gives a tenth of the
training clips a wrong label. What this project measures, and on which data, stands in
README.md.
"""

from ml_collections import ConfigDict

from configs import common, network

MODES = ("joint", "class", "instance", "none")
# network -> its settings (kws_jax/models/registry.py)
NETWORKS: dict[str, dict] = {
    **network.TC_RESNETS,
    **network.NETWORKS,
}
SIZES = ("paper", "cpu", "demo")


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment for the words after the colon."""
    chosen = common.parse(
        argument, {"mode": MODES, "network": tuple(NETWORKS), "size": SIZES}
    )
    name, mode = chosen["network"], chosen["mode"]
    config, train = common.base("data_parameters"), common.train_stage()
    network.choose(config, train, name, NETWORKS[name])
    train.condition.update(snr_db=(10.0, 5.0, 0.0, -5.0, -10.0), clean_fraction=0.5)
    train.data_parameters = common.data_parameters(mode)
    if name == "acoustic_dnn":
        # More than half of all frames are of other words and of silence, a state each,
        # whose temperatures fell to an eighth at the rate of the other networks: tested
        # without temperatures, the network then took everything for keywords.
        train.data_parameters.class_learning_rate = 1e-5
    if chosen["size"] != "paper":
        common.shorten(config, train, demo=chosen["size"] == "demo")
    config.stages = (train,)
    return config.lock()
