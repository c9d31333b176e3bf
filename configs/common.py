"""The fields every experiment has, with their defaults."""

from ml_collections import ConfigDict

from kws_jax.errors import UserError, nearest

TEN_KEYWORDS = "yes,no,up,down,left,right,on,off,stop,go"


def data() -> ConfigDict:
    """Which clips, words, splits and noises."""
    return ConfigDict(
        {
            # 'tfds', 'folder' or 'synthetic'.
            "source": "tfds",
            # Folder of the source: a TFDS data_dir, or WORD/*.wav|flac|ogg|mp3.
            "dir": "",
            # Prepared data and compiled programs; '' is ~/.cache/kws_jax.
            "cache_dir": "",
            # A named protocol (kws_jax/data/protocols.py), or 'auto': 'tfds-12' for
            # TFDS, else 'custom'.
            "protocol": "auto",
            # For 'tfds': another builder of the protocol's data; '' is its own.
            "builder": "",
            # Comma-separated; protocols that take every word have no use for it.
            "keywords": TEN_KEYWORDS,
            # Comma-separated other words that are kept from training and validation,
            # and tested apart from the ordinary unknown; '' is none.
            "unheard_words": "",
            # Words spoken by espeak-ng that are added to the unknown training clips.
            "synthetic_unknown": {
                # Their share of the unknown training clips; 0 is none.
                "rate": 0.0,
                # Comma-separated; '' is the built-in list (data/vocabulary.py).
                "words": "",
            },
            # For 'custom' alone: share of the keyword clips, per split; a negative
            # value takes all others.
            "unknown_percent": 10.0,
            "silence_percent": 10.0,
            # What a clip of silence is: 'zeros', 'background' (a crop of a background
            # recording at a random volume), '' for what the protocol has; for
            # 'custom', 'v1-12' and 'v2-12', which make it.
            "silence": "",
            # Leave out audio files that cannot be read (they are listed either way).
            "skip_corrupt": False,
            # For a folder without split lists.
            "validation_fraction": 0.1,
            "test_fraction": 0.1,
            # Folders of noise. 'seen': for stages whose condition has snr_db and, in
            # other recordings or seconds, for the 'seen' test; 'unseen': for that test
            # alone. '' takes what the source has: training hears its background, the
            # 'seen' test the background recordings held out from training.
            "noise_seen": "",
            "noise_unseen": "",
            # Share of the seen noise that is kept for the test: recordings of each kind
            # (folder), or the last seconds of a kind's only recording, a clip's length
            # after those of training.
            "noise_test_fraction": 0.3,
            # At most so many hours of each noise folder are read: recordings of every
            # kind in turn.
            "noise_hours": 2.0,
            # Rooms, for conditions with reverberant_fraction and for the far tests: a
            # folder of impulse responses, 'simulated', or '' for none.
            "rooms": "",
            # Share of the rooms that is kept for the test.
            "rooms_test_fraction": 0.3,
            "simulated_rooms": simulated_rooms(),
            # Share of the training clips, of whole speakers; for small training sets.
            "train_fraction": 1.0,
            # For 'synthetic': training clips of each keyword.
            "clips_per_word": 150,
            # Order of the clips, draws of their disturbance, halves of a search; model
            # initialisation has config.seed.
            "seed": 0,
            # Which clips stand for unknown and silence, in the test too; which speakers
            # train_fraction keeps; the voices of synthetic speech. Runs that are
            # compared share it.
            "task_seed": 0,
            # Share of the training clips that get another label, to see what training
            # makes of them; silence keeps its own. Chosen by task_seed.
            "flip_labels": 0.0,
            # Threads of the input pipeline.
            "threads": 2,
            # Keep the training clips and noises in the memory of each accelerator and
            # mix there. The same batches, to one unit of int16; tests stay on the host.
            "on_device": False,
        }
    )


def simulated_rooms() -> ConfigDict:
    """Shoebox rooms for data.rooms='simulated'; ranges are (low, high)."""
    return ConfigDict(
        {
            # Rooms in all, each with one talker and one microphone.
            "number": 40,
            "length_m": (3.0, 10.0),
            "width_m": (3.0, 8.0),
            "height_m": (2.4, 4.0),
            # Time (s) in which the sound falls by 60 dB; at most 2.
            "t60_s": (0.2, 0.8),
            # From the talker to the microphone.
            "distance_m": (0.5, 4.0),
            "seed": 0,
        }
    )


def mfcc() -> ConfigDict:
    """The MFCC of TC-ResNet and TENet: 98 frames of 40 coefficients."""
    return ConfigDict(
        {
            "name": "mfcc",
            "window_ms": 30.0,
            "hop_ms": 10.0,
            "num_mel": 64,
            "low_hz": 80.0,
            "high_hz": 7600.0,
            "num_coefficients": 40,
            "log_offset": 1e-6,
        }
    )


def log_mel() -> ConfigDict:
    """Kaldi's log-mel energies as ConvMixer takes them: 98 frames of 64 bands."""
    return ConfigDict(
        {
            "name": "log_mel",
            "window_ms": 25.0,
            "hop_ms": 10.0,
            "num_mel": 64,
            "low_hz": 20.0,
            "high_hz": 8000.0,
            "preemphasis": 0.97,
            # By the mean and deviation that the official code has for Speech Commands.
            "normalized": True,
        }
    )


def waveform(name: str, num_filters: int) -> ConfigDict:
    """Filters that the network learns: 'sinc' or 'conv1d', 98 frames of 25 ms."""
    free = {
        "name": name,
        "window_ms": 25.0,
        "hop_ms": 10.0,
        "num_filters": num_filters,
        # After the filters: 'log1p_abs', 'abs' or 'none'.
        "post": "log1p_abs",
    }
    if name == "conv1d":
        # The taps before training: 'uniform' or 'mel' (SincConv's), times the gain.
        return ConfigDict(free | {"first_filters": "uniform", "first_gain": 1.0})
    edges = {
        # The first bands, evenly spaced in mel between these, are widened by
        "low_hz": 30.0,
        "high_hz": 7900.0,
        # the lowest edge and the narrowest band, which training keeps.
        "min_low_hz": 50.0,
        "min_band_hz": 50.0,
        # Hz in one unit of the parameters: how fast edges move, by its square.
        "unit_hz": 100.0,
        # On the taps: 'hamming', 'hann' or 'none'.
        "window_function": "hamming",
    }
    return ConfigDict(free | edges)


def tc_resnet_sgd() -> ConfigDict:
    """TC-ResNet: SGD, 0.1 divided by ten after each third, L2 0.001 on kernels."""
    return ConfigDict(
        {
            "name": "sgd",  # 'sgd' or 'adam'
            "learning_rate": 0.1,
            # 'constant', 'cosine' (to final_learning_rate), 'rising_cosine' (from 0 to
            # learning_rate), 'step' (× step_factor at
            # each of step_at, given as fractions of the stage) or 'epoch_step' (×
            # step_factor when so many epochs are over as step_epochs says).
            "schedule": "step",
            "final_learning_rate": 0.0,
            "step_at": (1 / 3, 2 / 3),
            "step_epochs": (),
            "step_factor": 0.1,
            "warmup_fraction": 0.0,
            "momentum": 0.9,
            "nesterov": False,
            "b1": 0.9,
            "b2": 0.999,
            # Added to the gradient (L2); on kernels alone, or on all parameters.
            "weight_decay": 1e-3,
            "decay_all": False,
            # Largest global gradient norm; 0 is no limit.
            "clip_norm": 0.0,
        }
    )


def training_condition() -> ConfigDict:
    """The augmentation that TC-ResNet and its successors share (shift, background)."""
    return ConfigDict(
        {
            "shift_ms": 100.0,
            "background_probability": 0.8,
            "background_volume": 0.1,
            # Signal-to-noise ratios in dB, one drawn per clip; () is no such noise.
            "snr_db": (),
            # Share of clips that stay without noise where snr_db is given.
            "clean_fraction": 0.5,
            # Share of clips that are heard through a room of data.rooms.
            "reverberant_fraction": 0.0,
        }
    )


def spec_augment(masks: int = 0) -> ConfigDict:
    """Masks on the features in training; 0 masks is none."""
    return ConfigDict(
        {
            "time_masks": masks,
            "time_width": 20,
            "frequency_masks": masks,
            "frequency_width": 7,
            # Of the shortest mask, in frames and bins.
            "min_width": 0,
            # Value of the masked cells, in the features as the network gets them.
            "fill": 0.0,
        }
    )


def mixup() -> ConfigDict:
    """Clips mixed with others of their batch in training; probability 0 is none."""
    return ConfigDict(
        {
            "probability": 0.0,
            # Shares of the two are drawn from Beta(alpha, alpha).
            "alpha": 10.0,
            # Off from this fraction of the stage's (greatest) length on; 1 is never.
            "until": 1.0,
        }
    )


def stop() -> ConfigDict:
    """When a stage ends, and which of its states is the best."""
    return ConfigDict(
        {
            # 'length': after its epochs or steps; best is the highest accuracy in
            # validation. 'criterion': when ConvMixer's criterion no longer rises, after
            # its epochs or steps at the latest (kws_jax/training/stopping.py).
            "rule": "length",
            # Of the criterion: validations in a row without a new best.
            "patience": 10,
            # Whether a validation that equals the best is one, as each does in which
            # accuracy and loss are both the best so far. Algorithm 1 to the letter says
            # no, and ends stages that still get better at every validation.
            "ties": True,
            # Whether its history and its best begin anew with the stage, or go on from
            # the stage before.
            "resets": True,
        }
    )


def acoustic_mfcc() -> ConfigDict:
    """The 13 MFCCs of a frame that the acoustic model takes."""
    settings = mfcc()
    settings.num_coefficients = 13
    return settings


def alignment() -> ConfigDict:
    """How the acoustic model's training finds the HMM state of a frame."""
    return ConfigDict(
        {
            # Share of the stage in which words are cut evenly (flat start); then the
            # best path under the present weights counts.
            "flat_fraction": 0.25,
            # For the flat start: a word is where the energy is above this share of the
            # range between the quietest and the loudest frame (by the logarithm).
            "energy_share": 0.5,
        }
    )


def data_parameters(mode: str = "none") -> ConfigDict:
    """Trainable temperatures of labels and clips; values of Saxena et al.'s code.

    But for the rate of the labels: theirs, 0.1, is for the thousand of ImageNet. Of a
    dozen each has a share of the mean loss that is a hundred times larger, and at 0.1
    half of them went to the ends of the clamp: 43.4 % of the demo's clips right, 92.1 %
    with this rate and 90.8 % without data parameters. No schedule applies to the rates.
    """
    return ConfigDict(
        {
            # 'none', 'class', 'instance' or 'joint'.
            "mode": mode,
            # Temperatures at the start; instance 0 is 0.001 in 'joint', else 1.
            "class_initial": 1.0,
            "instance_initial": 0.0,
            "class_learning_rate": 1e-3,
            "instance_learning_rate": 0.8,
            "momentum": 0.9,
            # Of ½ Σ (ln σ)² over a batch, for the two and for the ln of their sum.
            "class_decay": 1e-4,
            "instance_decay": 1e-8,
            "joint_decay": 0.0,
            # Temperatures are kept in 1/clamp … clamp.
            "clamp": 20.0,
            # A clip in noise is another example than without; SNRs (dB), rising, that
            # part noisy ones further.
            "snr_edges_db": (),
        }
    )


def train_stage() -> ConfigDict:
    """Ordinary training of the network: TC-ResNet's recipe."""
    return ConfigDict(
        {
            "name": "train",
            "kind": "train",
            # Length: epochs, or steps where steps > 0.
            "epochs": 0.0,
            "steps": 30_000,
            "batch_size": 100,
            "eval_every_epochs": 1.0,
            # Validation 'clean', or in the noise and the rooms of the 'condition'.
            "validation": "clean",
            "stop": stop(),
            # 'cross_entropy', or 'binary_cross_entropy' of k independent sigmoids.
            "objective": "cross_entropy",
            # 'all', or 'head': the linear layer on the embedding of the stage before,
            # which must be one that trains the network ('embed' or 'train').
            "trained_part": "all",
            "label_smoothing": 0.0,
            "optimizer": tc_resnet_sgd(),
            # After another stage of training: 'restart' the optimiser and its schedule,
            # or 'continue' them as they were in the end of that stage; data parameters
            # begin anew.
            "optimizer_start": "restart",
            "condition": training_condition(),
            "spec_augment": spec_augment(),
            "mixup": mixup(),
            "data_parameters": data_parameters(),
        }
    )


def shorten(config: ConfigDict, train: ConfigDict, *, demo: bool) -> None:
    """The recipe for small data on two cores, the same for every network.

    Thirty epochs over some ten thousand clips want a rate that falls steadily, and
    masks against overfitting. On 1,734 validation clips of ten labels TC-ResNet8 (seed
    0) reached 95.7 % with them and 95.2 % in forty epochs of TC-ResNet's own recipe.
    """
    train.update(steps=0, epochs=30.0, eval_every_epochs=2.0)
    train.optimizer.schedule = "cosine"
    train.spec_augment = spec_augment(masks=1)
    momentum = config.network.batch_norm_momentum
    config.network.batch_norm_momentum = min(momentum, 0.99)
    if demo:
        config.data.source = "synthetic"
        train.epochs = 40.0
        train.spec_augment = spec_augment()
        # Some hundred steps: the running statistics must follow sooner.
        config.network.batch_norm_momentum = 0.9


def evaluation() -> ConfigDict:
    """What the finished network is tested on, beside the clean clips."""
    return ConfigDict(
        {
            # Signal-to-noise ratios in dB of the tests in seen and unseen noise, near
            # and, where there are rooms, far; () for none.
            "snr_db": (20.0, 15.0, 10.0, 5.0, 0.0, -5.0, -10.0),
            "batch_size": 256,
            "seed": 1234,
            # Keep the test clips' embeddings (embeddings.npz), clean and in the noise
            # nearest to 0 dB; so it is for networks with a stage 'embed' too.
            "embeddings": False,
        }
    )


def detection() -> ConfigDict:
    """Continuous audio made of validation and test clips, and how it is listened to."""
    return ConfigDict(
        {
            # Whether the final test measures detection too; `kws_jax.detect` does it at
            # any time. Few false alarms an hour take hours of audio to be counted,
            # which costs most of a minute where all other tests take seconds.
            "final_test": False,
            # Length of each stream: one of validation clips, and of test clips one
            # clean and one over each kind of noise at each of snr_db; with data.rooms
            # these again, far.
            "hours": 1.0,
            "keywords_per_hour": 600.0,
            # Share of the time with a word in it, keyword or other, a second each.
            "speech_share": 0.3,
            # Share of the gaps that hold background; the others are silent.
            "noise_share": 0.5,
            # Levels in dB of the usual keyword over noise that runs all the time.
            "snr_db": (10.0,),
            # 'windows' of a second; 'frames': the network's own scores of keywords that
            # end at each frame; 'auto': frames where it has them (acoustic_dnn).
            "scores": "auto",
            # Between two windows of a second.
            "hop_ms": 100.0,
            # The windows' posteriors are averaged over so much time.
            "smoothing_ms": 300.0,
            # A keyword is reported once in so much time.
            "refractory_ms": 1000.0,
            # So far outside its second, a keyword still counts as found.
            "tolerance_ms": 250.0,
            # The threshold makes at most so many on validation clips; it is the middle
            # of those that do equally well there.
            "target_false_alarms_per_hour": 1.0,
            "seed": 4321,
        }
    )


def base(name: str) -> ConfigDict:
    """An experiment without stages and without a network."""
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
            # So many networks, of seed, seed + 1, …, each in WORKDIR/seed-S; they hear
            # the same batches. The results are means with intervals over the seeds.
            "seeds": 1,
            # Whether stages of training train all seeds in one program: 'yes', 'no', or
            # 'auto', on accelerators alone. Others take one seed after the other.
            "seeds_at_once": "auto",
            "log_every_steps": 20,
            # With data.on_device: how many training steps one call of the device makes;
            # single ones where so many would cross a log line or a validation.
            "steps_per_call": 1,
            # What networks compute in while they train: 'float32' or 'bfloat16'.
            # Weights, statistics, features, losses and all tests are float32, and so
            # are stages 'quantize' as a whole, since bfloat16 would round once more.
            "compute_dtype": "float32",
            # Whether batch_size and tuples_per_batch of stages are those of the whole
            # training, 'global', or of each 'device' of it.
            "batch_size_of": "global",
            # With 'device', what devices multiply the learning rate of weights by:
            # 'none', 'linear' (their number) or 'sqrt' (its root).
            "learning_rate_scaling": "none",
            # Whether the batch norms of training take mean and variance over the whole
            # batch, 'global', or each 'device' over its own rows of it.
            "batch_norm_of": "global",
            "data": data(),
            "frontend": mfcc(),
            # What the features go through first: 'none', 'dynamic', 'dynamic_conv' or
            # 'light_conv'; their settings stand in configs/dynamic_filter.py.
            "front_filter": ConfigDict({"name": "none"}),
            "evaluation": evaluation(),
            "detection": detection(),
        }
    )


def parse(argument: str | None, choices: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Reads the words behind the colon of `--config=FILE.py:a,b`.

    `choices` maps a group to its words, the default first; each word belongs to one
    group. Raises UserError for an unknown word or two words of one group.
    """
    chosen = {group: words[0] for group, words in choices.items()}
    owner = {word: group for group, words in choices.items() for word in words if word}
    given: dict[str, str] = {}
    for word in filter(None, (argument or "").split(",")):
        if word not in owner:
            raise UserError(
                f"Unknown config argument {word!r} after the colon: "
                f"{nearest(word, owner)}"
            )
        group = owner[word]
        if given.setdefault(group, word) != word:
            raise UserError(
                f"Config arguments {given[group]!r} and {word!r} exclude each other; "
                "give one of them."
            )
    return chosen | given
