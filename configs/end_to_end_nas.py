"""End-to-end keyword spotting by architecture search: SincConv and ProxylessNAS.

Peter, Roth and Pernkopf, "End-to-end Keyword Spotting using Neural Architecture Search
and Quantization", ICASSP 2022, arXiv 2104.06666.

    python -m kws_jax.main --config=configs/end_to_end_nas.py --workdir=runs/nas

Words after a colon, separated by commas, choose

    sinc60 (default), sinc40, sinc80          filters that are told by two edges each
    conv1d (that is conv1d60), conv1d40, conv1d80    free filters, the paper's baseline
    mfcc10, mfcc20, mfcc30, mfcc40            no learned front end
    proxyless (default), random               the search; its baseline under the limits
    float (default), w8a8 … w1a1, learned_bits, few_bits    how it is quantised
    paper (default), cpu, demo                the size

`--config.search.beta=B` says how much operations count; several values give networks
of some 30,000 to 90,000 parameters; the largest of the space has 109,622, or 123,000
with `--config.network.round_widths`.
`--config.search.max_macs`, `max_parameters` and `min_parameters` are hard limits of the
found network.
`python -m kws_jax.compare WORKDIR… --plot=FILE.html` draws accuracy against parameters.
Filters that are learned stay in float when the network is quantised.

The recipe is that of the authors' earlier code (2012.10138): 40 epochs of weights, 120
of search, 120 of training. In `cpu` and `demo` they are 4, 12 and 30 (40), at rates of
0.2 in warm-up and for the architecture, and the candidates of the supernet share their
weights, which is not the paper's. Not published: the window, the first bands and
what follows the filters, the values of beta and the reference of this paper. The paper
reports 95.55 % with 75,700 parameters and 13.6 M operations (60 filters, Speech
Commands v1).
What this project measures, and on which data, stands in README.md.
"""

from ml_collections import ConfigDict

from configs import common, quantized

FRONTENDS = (
    "sinc60",
    "sinc40",
    "sinc80",
    "conv1d",
    *(f"conv1d{n}" for n in (40, 60, 80)),
    *(f"mfcc{n}" for n in (10, 20, 30, 40)),
)
METHODS = ("proxyless", "random")
SIZES = ("paper", "cpu", "demo")


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment for the words after the colon."""
    groups = {
        "frontend": FRONTENDS,
        "method": METHODS,
        "bits": quantized.FLOAT_OR_BITS,
        "size": SIZES,
    }
    chosen = common.parse(argument, groups)
    size, demo = chosen["size"], chosen["size"] == "demo"
    config = common.base("end_to_end_nas")
    config.frontend = _frontend(chosen["frontend"])
    config.network = ConfigDict(
        {
            "name": "mbconv",
            # Six operations "E6K7,SKIP,…" or a JSON file; '' takes what the search
            # stage has found.
            "layers": "",
            # Widths as multiples of 8, as in the authors' code.
            "round_widths": False,
            # 'relu6' (the authors' code) or 'relu' (their text).
            "activation": "relu6",
            "batch_norm_momentum": 0.9,
        }
    )
    config.search = _search(chosen["method"])
    train = common.train_stage()
    train.update(epochs=120.0, steps=0, label_smoothing=0.1)
    train.optimizer = _optimizer(0.2)
    if size != "paper":
        smoothing, optimizer = train.label_smoothing, train.optimizer
        common.shorten(config, train, demo=demo)
        # the same recipe, shorter; masks would have to lie behind learned filters
        train.update(label_smoothing=smoothing, spec_augment=common.spec_augment())
        train.optimizer = optimizer
    first: tuple[ConfigDict, ...]
    if chosen["method"] == "random":
        first = (ConfigDict({"name": "draw", "kind": "random_search"}),)
    else:
        first = (_warm_up(), _search_stage())
        if size != "paper":
            for stage, epochs in zip(first, (4.0, 12.0), strict=True):
                stage.update(epochs=epochs, eval_every_epochs=1.0 if demo else 2.0)
            # Of eighteen candidates apart each learns in one step of eighteen: such a
            # supernet learned next to nothing in these epochs.
            config.search.nested = True
            first[0].optimizer.learning_rate = 0.2
            # Some two hundred steps moved no architecture at the paper's rate, and at
            # 0.05 left the choices nearly even.
            first[1].architecture_optimizer.learning_rate = 0.2
    config.stages = (*first, train)
    if chosen["bits"] != quantized.FLOAT:
        config = quantized.add_quantization(config, chosen["bits"])
    return config.lock()


def _frontend(word: str) -> ConfigDict:
    for name in ("sinc", "conv1d"):
        if word.startswith(name):
            return common.waveform(name, int(word.removeprefix(name) or 60))
    mfcc = common.mfcc()
    mfcc.num_coefficients = int(word.removeprefix("mfcc"))
    return mfcc


def _search(method: str) -> ConfigDict:
    return ConfigDict(
        {
            "method": method,
            # The architecture's loss is scale · CE · (ln E[MACs] / ln reference)^beta.
            "beta": 0.3,
            "scale": 1.0,
            "reference_macs": 20e6,
            # What the found network may have at most, and at least (for one drawn at
            # random, of the size of one that was searched); 0 is no limit.
            "max_macs": 0,
            "max_parameters": 0,
            "min_parameters": 0,
            # The space.
            "expansions": (1, 2, 3, 4, 5, 6),
            "kernels": (3, 5, 7),
            # Whether the supernet's candidates share their weights: the first hidden
            # channels of the largest expansion (one of 1 has its own), the middle of
            # the largest kernel; batch norms behind both stay apart.
            "nested": False,
            # The architecture learns from the 'validation' clips, or from one 'half'
            # of the training clips, the weights from the other.
            "architecture_data": "validation",
        }
    )


def _warm_up() -> ConfigDict:
    stage = _search_stage()
    stage.update(name="warm_up", epochs=40.0, architecture_every=0, warmup_epochs=0.0)
    stage.optimizer.learning_rate = 0.05
    return stage


def _search_stage() -> ConfigDict:
    architecture = common.tc_resnet_sgd()
    architecture.update(
        name="adam",
        learning_rate=4e-3,
        # From 0 up to the rate.
        schedule="rising_cosine",
        b1=0.0,
        b2=0.999,
        weight_decay=0.0,
    )
    return ConfigDict(
        {
            "name": "search",
            "kind": "proxyless_search",
            "epochs": 120.0,
            "steps": 0,
            "batch_size": 100,
            "eval_every_epochs": 1.0,
            # Weight steps for each step of the architecture; 0: weights alone.
            "architecture_every": 5,
            # Epochs in which the architecture is not yet trained.
            "warmup_epochs": 1.0,
            # In weight steps alone.
            "label_smoothing": 0.1,
            "optimizer": _optimizer(0.2),
            "architecture_optimizer": architecture,
            "condition": common.training_condition(),
            "spec_augment": common.spec_augment(),
        }
    )


def _optimizer(rate: float) -> ConfigDict:
    optimizer = common.tc_resnet_sgd()
    optimizer.update(
        learning_rate=rate, schedule="cosine", nesterov=True, weight_decay=4e-5
    )
    return optimizer
