"""AutoKWS: differentiable architecture search over TC-ResNet blocks.

Zhang et al., "AutoKWS: Keyword Spotting with Differentiable Architecture Search",
ICASSP 2021, arXiv 2009.03658.

    python -m kws_jax.main --config=configs/autokws.py --workdir=runs/autokws

Words after a colon, separated by commas, choose

    noisydarts (default), darts, fairdarts, random        the search method
    float (default), w8a8 … w1a1, learned_bits, few_bits  how it is quantised in the end
    paper (default), cpu, demo                            the size

`paper` searches and trains on TFDS Speech Commands. The paper gives neither its search
nor its training hyper-parameters: those of the search methods' own publications and of
TC-ResNet stand in for them. `cpu` is a shorter recipe for some ten thousand clips on
two cores; `demo` makes its own speech and ends in minutes.

The paper reports (Speech Commands v1, 12 labels, mean of 8 searched networks):
NoisyDARTS-TC14 96.79 %, FairDARTS-TC14 96.70 %, DARTS-TC14 96.63 %, random 96.58 %,
TC-ResNet14-1.5 96.49 %. What this project measures, and on which data, stands in
README.md.
"""

from ml_collections import ConfigDict

from configs import common, quantized

METHODS = ("noisydarts", "darts", "fairdarts", "random")
SIZES = ("paper", "cpu", "demo")


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment for the words after the colon."""
    groups = {"method": METHODS, "bits": quantized.FLOAT_OR_BITS, "size": SIZES}
    chosen = common.parse(argument, groups)
    method, size = chosen["method"], chosen["size"]
    config = common.base("autokws")
    config.network = ConfigDict(
        {
            "name": "searched",
            # A JSON file or a published name (autokws-noisydarts, …); '' takes what
            # the search stage has found.
            "genotype": "",
            "dropout": 0.5,
            # What running statistics keep at each step.
            "batch_norm_momentum": 0.997,
        }
    )
    config.search = _search(method)
    train = common.train_stage()
    if method == "random":
        first = ConfigDict({"name": "draw", "kind": "random_search"})
    else:
        first = _search_stage(method)
    config.stages = (first, train)
    if size != "paper":
        common.shorten(config, train, demo=size == "demo")
        if method != "random":
            _shorten_search(first, demo=size == "demo")
    if chosen["bits"] != quantized.FLOAT:
        config = quantized.add_quantization(config, chosen["bits"])
    return config.lock()


def _search(method: str) -> ConfigDict:
    return ConfigDict(
        {
            "method": method,
            # FairDARTS: operations above it are kept; weight of the zero-one loss.
            "threshold": 0.8,
            "zero_one_weight": 10.0,
            # NoisyDARTS: standard deviation on the skip, relative to its input's.
            "skip_noise": 0.2,
            # 1: first order; 2: through the unrolled weight step, whose program takes
            # minutes to compile on two cores (see CONTRIBUTING.md).
            "order": 1,
            # The space: TC-ResNet14's skeleton.
            "width": 1.5,
            "shortcut": "1x1",  # of reduction blocks: '1x1' or 'jx1'
            "se_reduction": 4,
            # What its layers choose from, C3, C3SE, C5 … C9SE and SKIP; () is all.
            "operations": (),
        }
    )


def _search_stage(method: str) -> ConfigDict:
    optimizer = common.tc_resnet_sgd()
    optimizer.update(
        learning_rate=0.005 if method == "fairdarts" else 0.05,
        schedule="cosine",
        final_learning_rate=0.0 if method == "fairdarts" else 0.001,
        weight_decay=3e-4,
        clip_norm=5.0,
    )
    architecture = common.tc_resnet_sgd()
    architecture.update(
        name="adam",
        learning_rate=3e-4,
        schedule="constant",
        b1=0.5,
        b2=0.999,
        weight_decay=1e-3,
        decay_all=True,
    )
    return ConfigDict(
        {
            "name": "search",
            "kind": "search",
            "epochs": 50.0,
            "steps": 0,
            "batch_size": 128,
            "eval_every_epochs": 1.0,
            # Epochs in which the architecture is not yet trained.
            "warmup_epochs": 0.0,
            "label_smoothing": 0.0,
            "optimizer": optimizer,
            "architecture_optimizer": architecture,
            "condition": common.training_condition(),
            "spec_augment": common.spec_augment(),
        }
    )


def _shorten_search(search: ConfigDict, *, demo: bool) -> None:
    search.update(epochs=12.0, eval_every_epochs=2.0)
    # Four hundred steps at 3e-4 could not move an architecture away from uniform.
    search.architecture_optimizer.learning_rate = 5e-3
    if demo:
        search.update(epochs=12.0, eval_every_epochs=1.0)
        search.architecture_optimizer.learning_rate = 0.02
