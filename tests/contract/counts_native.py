"""How many numbers each of the harness's own methods trains, derived from its description and the models' dimensions.

Each entry is a function of a model's `Sizes` and the learner, whose `choices.params` hold the method's hyperparameters.
"""

from collections.abc import Callable


def parameter(learner, name):
    return learner.choices.params[name]


def weights(sizes):
    return sizes.each(lambda inputs, outputs: inputs * outputs)


def everything(sizes, learner):
    return sizes.parameters


def biases(sizes, learner):
    """One for each output of a linear layer where layers have them; those of norms. RWKV has them in norms alone."""
    assert sizes.biases or sizes.family == "rwkv"
    layers = sizes.each(lambda inputs, outputs: outputs) if sizes.biases else 0
    return layers + sizes.norms * sizes.hidden


def layer_freezing(sizes, learner):
    """A quarter of two layers is one, of four too: the last one, which has two norms and no third."""
    count = max(1, round(parameter(learner, "trained_share") * sizes.layers))
    assert count < sizes.layers
    assert parameter(learner, "trained_end") == "last"
    matrices = sum(inputs * outputs for inputs, outputs in sizes.block)
    outputs = sum(outputs for _, outputs in sizes.block)
    # RWKV: weights and biases of two norms; decay and start of attention; three mixtures there, two in the other part
    rest = {"llama": 2 * sizes.hidden, "gpt2": outputs + 4 * sizes.hidden, "rwkv": (4 + 2 + 3 + 2) * sizes.hidden}
    return count * (matrices + rest[sizes.family])


def bottleneck(width, inner):
    """Two matrices and their biases."""
    return width * inner + inner + inner * width + width


def serial(places):
    """So many adapters in each block."""

    def count(sizes, learner):
        return sizes.layers * places * bottleneck(sizes.hidden, sizes.hidden // parameter(learner, "reduction"))

    return count


def parallel(sizes, learner):
    own = bottleneck(sizes.hidden, parameter(learner, "bottleneck")) + parameter(learner, "learned_scale")
    return sizes.layers * own


def prefix(sizes, learner):
    """A key and a value for each virtual token and layer."""
    return parameter(learner, "virtual_tokens") * sizes.layers * 2 * sizes.hidden


def unipelt(sizes, learner):
    """Each part, and for each a gate: a vector and a number, or for a layer's prefix a number."""
    rank, width = parameter(learner, "rank"), sizes.hidden
    # queries and values: apart in a Llama, one product of three in a GPT-2
    pairs = {"llama": [(width, width)] * 2, "gpt2": [(width, 3 * width)]}[sizes.family]
    lora = sum(rank * (inputs + outputs) + inputs + 1 for inputs, outputs in pairs)
    adapter = bottleneck(width, width // parameter(learner, "reduction")) + width + 1
    return sizes.layers * (lora + adapter + 1) + prefix(sizes, learner)


def fusion(sizes, learner):
    """Query, key and value of each block, the first two with biases."""
    return sizes.layers * (3 * sizes.hidden**2 + 2 * sizes.hidden)


def high_dropout(sizes, learner):
    assert parameter(learner, "trained_part") == "all"
    return sizes.parameters


def lily(sizes, learner):
    """Of each kind of layer an inner factor for every two and all outer factors once; of each layer a router."""
    rank, outer = parameter(learner, "rank"), parameter(learner, "up_factors")
    assert parameter(learner, "shared_by") == 2
    assert sizes.layers % 2 == 0
    kinds = sum(sizes.layers // 2 * rank * inputs + outer * rank * outputs for inputs, outputs in sizes.block)
    return kinds + len(sizes.linears) * rank * outer


COUNTS: dict[str, Callable] = {
    "full": lambda sizes, learner: sizes.parameters,
    "adapter_fusion": fusion,
    "adapter_houlsby": serial(2),
    "adapter_parallel": parallel,
    "adapter_pfeiffer": serial(1),
    "apollo": everything,
    "bitfit": biases,
    # the difference and its gate's logit for each weight, one more for each matrix
    "diff_pruning": lambda sizes, learner: 2 * weights(sizes) + len(sizes.linears),
    "dp_lora": lambda sizes, learner: sizes.each(lambda i, o: parameter(learner, "rank") * (i + o)),
    "far": everything,
    "fishmask": lambda sizes, learner: round(parameter(learner, "mask_share") * weights(sizes)),
    "galore": everything,
    "high_dropout": high_dropout,
    "intrinsic_dimension": lambda sizes, learner: parameter(learner, "dimension"),
    "layer_freezing": layer_freezing,
    "lily": lily,
    "lisa": everything,
    "mam": lambda sizes, learner: parallel(sizes, learner) + prefix(sizes, learner),
    # every weight, and an embedding for each virtual token
    "promot": lambda sizes, learner: sizes.parameters + parameter(learner, "virtual_tokens") * sizes.hidden,
    # both factors, and a gate for each rank
    "sora": lambda sizes, learner: sizes.each(lambda i, o: parameter(learner, "rank") * (i + o + 1)),
    "spider": everything,
    "unipelt": unipelt,
    # for each linear layer and expert a vector and a number
    "x_lora": lambda sizes, learner: (
        len(sizes.linears) * len(GIVEN["x_lora"]["expert_tasks"].split(",")) * (sizes.hidden + 1)
    ),
}

GIVEN = {
    "adapter_fusion": {"fusion_sources": "low, high", "source_steps": 2},
    "x_lora": {"expert_tasks": "low, high", "source_steps": 2},
}
"""Parameters that a method cannot do without."""
