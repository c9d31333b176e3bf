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
            # Folder of the source: a TFDS data_dir, or WORD/*.wav|flac|ogg.
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
            # For 'custom': share of the keyword clips, per split; a negative value
            # takes all others.
            "unknown_percent": 10.0,
            "silence_percent": 10.0,
            # What a clip of silence is: 'zeros', 'background' (a crop of a background
            # recording at a random volume), '' for what the protocol has.
            "silence": "",
            # Leave out audio files that cannot be read (they are listed either way).
            "skip_corrupt": False,
            # For a folder without split lists.
            "validation_fraction": 0.1,
            "test_fraction": 0.1,
            # Folders of noise. 'seen': for stages whose condition has snr_db, and for
            # the 'seen' test; 'unseen': for that test alone. '' takes what the source
            # has: its background recordings are seen, being added in training.
            "noise_seen": "",
            "noise_unseen": "",
            # For 'synthetic': training clips of each keyword.
            "clips_per_word": 150,
            # Order of the clips, draws of their disturbance, halves of a search; model
            # initialisation has config.seed.
            "seed": 0,
            # Which clips stand for unknown and silence, in the test too; the voices of
            # synthetic speech. Runs that are compared share it.
            "task_seed": 0,
            # Threads of the input pipeline.
            "threads": 2,
            # Keep the training clips and noises in the memory of each accelerator and
            # mix there. The same batches, to one unit of int16; tests stay on the host.
            "on_device": False,
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
        return ConfigDict(free)
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
            # 'constant', 'cosine' (to final_learning_rate) or 'step' (× step_factor
            # at each of step_at, given as fractions of the stage).
            "schedule": "step",
            "final_learning_rate": 0.0,
            "step_at": (1 / 3, 2 / 3),
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
            "label_smoothing": 0.0,
            "optimizer": tc_resnet_sgd(),
            "condition": training_condition(),
            "spec_augment": spec_augment(),
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
            "snr_db": (20.0, 10.0, 5.0, 0.0, -5.0),
            "batch_size": 256,
            "seed": 1234,
        }
    )


def base(name: str) -> ConfigDict:
    """An experiment without stages and without a network."""
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
            "log_every_steps": 20,
            # With data.on_device: how many training steps one call of the device makes;
            # single ones where so many would cross a log line or a validation.
            "steps_per_call": 1,
            # What networks compute in while they train: 'float32' or 'bfloat16'.
            # Weights, statistics, features, losses and all tests are float32.
            "compute_dtype": "float32",
            "data": data(),
            "frontend": mfcc(),
            "evaluation": evaluation(),
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
