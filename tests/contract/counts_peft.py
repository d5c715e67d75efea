"""How many numbers each of PEFT's methods trains, derived from its paper's formulas and the models' dimensions.

Each entry is a function of a model's `Sizes` and the learner, whose `choices.params` hold the method's hyperparameters.
"""

from math import gcd


def parameter(learner, name):
    return learner.choices.params[name]


def rank(learner, most=1 << 30):
    return min(int(parameter(learner, "rank")), most)


def lora(sizes, learner):
    """Factors of `rank` times in-features and out-features times `rank`."""
    return sizes.each(lambda inputs, outputs: rank(learner) * (inputs + outputs))


def lora_and(extra):
    """LoRA, and so many numbers of each layer."""
    return lambda sizes, learner: lora(sizes, learner) + sizes.each(lambda i, o: extra(i, o, learner))


def outer_only(sizes, learner):
    return sizes.each(lambda inputs, outputs: outputs * rank(learner))


def inner_only(sizes, learner):
    return sizes.each(lambda inputs, outputs: inputs * rank(learner))


def eva(sizes, learner):
    """LoRA's, with each layer's own rank; ranks add up to those of LoRA."""
    config = learner.model.peft_config["default"]
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in learner.choices.method.layers(learner.model).items()
    }
    own = {name: config.rank_pattern.get(name, config.r) for name in layers}
    assert sum(own.values()) == config.r * len(sizes.linears)
    order = [own[name] for name in layers]
    return sum(r * (inputs + outputs) for r, (inputs, outputs) in zip(order, sizes.linears, strict=True))


def adalora(sizes, learner):
    """`P diag(e) Q` of the start's rank, half as much again as the last."""
    start = max(rank(learner) + 1, round(1.5 * rank(learner)))
    return sizes.each(lambda inputs, outputs: start * (inputs + outputs + 1))


def kronecker(size):
    """The two factors of a number that are closest to its root, the smaller one first."""
    small = max(f for f in range(1, int(size**0.5) + 1) if size % f == 0)
    return small, size // small


def krona(sizes, learner):
    def both(inputs, outputs):
        (o1, o2), (i1, i2) = kronecker(outputs), kronecker(inputs)
        return o1 * i1 + o2 * i2

    return sizes.each(both)


def lokr(sizes, learner):
    """The second factor in two of `rank`, where it is larger than those."""

    def both(inputs, outputs):
        (o1, o2), (i1, i2) = kronecker(outputs), kronecker(inputs)
        low = rank(learner) < max(o2, i2) / 2
        return o1 * i1 + (rank(learner) * (o2 + i2) if low else o2 * i2)

    return sizes.each(both)


def block(sizes, learner, both):
    """The largest block up to the one asked for that divides all widths (`both`: of outputs, too)."""
    widths = [size for pair in sizes.linears for size in (pair if both else pair[:1])]
    common = gcd(*widths)
    return max(size for size in range(1, int(parameter(learner, "block")) + 1) if common % size == 0)


def oft(sizes, learner):
    """A skew-symmetric matrix for each block of inputs."""
    size = block(sizes, learner, both=False)
    return sizes.each(lambda inputs, outputs: inputs // size * size * (size - 1) // 2)


def boft(sizes, learner):
    """A square matrix for each block of inputs, of which half acts; a scale for each output."""
    size = block(sizes, learner, both=False)
    return sizes.each(lambda inputs, outputs: inputs * size + outputs)


def poly(sizes, learner):
    """Each skill's LoRA, and its logit in each layer."""
    skills = int(parameter(learner, "skills"))
    return skills * (lora(sizes, learner) + len(sizes.linears))


def c3a(sizes, learner):
    """One number for each block row, block column and shift."""
    size = block(sizes, learner, both=True)
    return sizes.each(lambda inputs, outputs: inputs // size * (outputs // size) * size)


def glora(sizes, learner):
    """Two low-rank matrices, and with biases a third in front of them and a number for each of two more."""
    both = 2 * lora(sizes, learner)
    return both + (sizes.each(lambda i, o: rank(learner) * (i + 1) + 2) if sizes.biases else 0)


def randlora(sizes, learner):
    """Bases as many as make full rank; a number for each of a base's ranks, and one for each base and input."""

    def one(inputs, outputs):
        small = min(inputs, outputs)
        bases = -(-small // rank(learner))
        return bases * rank(learner) + bases * small

    return sizes.each(one)


def vblora(sizes, learner):
    """A bank of vectors, and a rating of each for each piece of each factor."""
    length = min(256, gcd(*(size for pair in sizes.linears for size in pair)))
    count = int(parameter(learner, "vectors"))
    pieces = sizes.each(lambda inputs, outputs: rank(learner) * (inputs + outputs) // length)
    return count * length + count * pieces


def road(sizes, learner):
    """Angle and length of every output; pairs share them, which takes half of both."""
    return sizes.each(lambda inputs, outputs: 2 * outputs // 2)


def frod(sizes, learner):
    """A scale for each input, and a share of the entries of a square that wide, rounded down."""
    share = float(parameter(learner, "rotated_share"))
    return sizes.each(lambda inputs, outputs: inputs + int(share * inputs**2))


def osf(sizes, learner):
    """Singular vectors and values of the half that does not stay."""

    def one(inputs, outputs):
        free = min(inputs, outputs) - int(float(parameter(learner, "kept_share")) * min(inputs, outputs))
        return free * (inputs + outputs + 1)

    return sizes.each(one)


def psoft(sizes, learner):
    """A skew-symmetric matrix and two diagonals."""
    return sizes.each(lambda i, o: rank(learner) * (rank(learner) - 1) // 2 + 2 * rank(learner))


def adamss(sizes, learner):
    """For each cluster of outputs a row of the decomposition's width and a column of the cluster's height."""
    narrowest = min(min(pair) for pair in sizes.linears)
    width, clusters = min(100, narrowest), int(parameter(learner, "subspaces"))
    return sizes.each(lambda inputs, outputs: clusters * width + outputs)


def norms(sizes, learner):
    return sizes.norms * sizes.hidden * (1 if sizes.family == "llama" else 2)


def tokens(sizes, learner):
    """An embedding for each token of the eight training rows, of which there are fewer than 100."""
    texts = [row.prompt + row.completion for row in learner.setup.rows()]
    return len(set("".join(texts))) * sizes.hidden


def virtual(sizes, learner):
    return int(parameter(learner, "virtual_tokens")) * sizes.hidden


def p_tuning(sizes, learner):
    """Embeddings, and a network with three layers and their biases."""
    wide = int(parameter(learner, "encoder_width"))
    network = sizes.hidden * wide + wide + wide * wide + wide + wide * sizes.hidden + sizes.hidden
    return virtual(sizes, learner) + network


def keys_and_values(sizes, learner, frozen=0):
    """One key and one value per layer and virtual token."""
    return (int(parameter(learner, "virtual_tokens")) - frozen) * 2 * sizes.layers * sizes.hidden


def adaption_prompt(sizes, learner):
    """Tokens and a gate for each layer, of which there are fewer than 30."""
    return sizes.layers * (int(parameter(learner, "prompt_tokens")) * sizes.hidden + 1)


def ia3(sizes, learner):
    """A factor for each key, value and inner feature; GPT-2's keys and values come with queries, from one layer."""
    attention = 3 * sizes.hidden if sizes.family == "gpt2" else 2 * sizes.hidden
    return sizes.layers * (attention + sizes.inner)


COUNTS = {
    "adalora": adalora,
    "adamss": adamss,
    "adaption_prompt": adaption_prompt,
    "beft": lambda sizes, learner: sizes.each(lambda i, o: o),
    "boft": boft,
    "c3a": c3a,
    "cartridge": lambda sizes, learner: keys_and_values(sizes, learner, frozen=1),
    "corda": lora,
    "cpt": virtual,
    "deft": lora,
    "delora": lora_and(lambda i, o, learner: 1),
    "dora": lora_and(lambda i, o, learner: o),
    "eva": eva,
    "fourierft": lambda sizes, learner: len(sizes.linears) * int(parameter(learner, "frequencies")),
    "frod": frod,
    "glora": glora,
    "gralora": lora,
    "hira": lora,
    "hra": inner_only,
    "ia3": ia3,
    # a share for each factor's shortcut
    "ir_qlora": lora_and(lambda i, o, learner: 2),
    "kasa": lora_and(lambda i, o, learner: rank(learner)),
    "krona": krona,
    "ln_tuning": norms,
    "loftq": lora,
    "loha": lambda sizes, learner: 2 * lora(sizes, learner),
    "lokr": lokr,
    "lora": lora,
    "lora_fa": outer_only,
    "lora_ga": lora,
    "lora_orthogonal": lora,
    "lora_riemannian": lora,
    "loraplus": lora,
    "mica": inner_only,
    "miss": lambda sizes, learner: sizes.each(lambda i, o: rank(learner) * o),
    # a variance for each of the inner factor's outputs, a weight for each of eight samples
    "monteclora": lora_and(lambda i, o, learner: rank(learner) + int(parameter(learner, "samples"))),
    # the prompt, a number for each of its tokens and one for each dimension
    "multitask_prompt_tuning": lambda sizes, learner: (
        virtual(sizes, learner) + int(parameter(learner, "virtual_tokens")) + sizes.hidden
    ),
    "oft": oft,
    "olora": lora,
    "osf": osf,
    "p_tuning": p_tuning,
    "peanut": lambda sizes, learner: sizes.each(lambda i, o: rank(learner) * 2 * o),
    "pissa": lora,
    "poly": poly,
    "prefix_tuning": keys_and_values,
    "prompt_tuning": virtual,
    "psoft": psoft,
    "pvera": lambda sizes, learner: sizes.each(lambda i, o: 2 * rank(learner) + o),
    # one column for 32 inputs
    "qalora": lambda sizes, learner: sizes.each(lambda i, o: rank(learner) * (i // 32 + o)),
    "qlora": lora,
    "qlora_int8": lora,
    "qlora_8bit_moments": lora,
    "randlora": randlora,
    "road": road,
    "rslora": lora,
    "shira": lora,
    "supertuning": lambda sizes, learner: sizes.each(lambda i, o: i * o // 100),
    "tinylora": lambda sizes, learner: len(sizes.linears) * int(parameter(learner, "numbers")),
    "trainable_tokens": tokens,
    "unilora": lambda sizes, learner: int(parameter(learner, "vector_length")),
    "vblora": vblora,
    "velora": lora,
    "vera": lambda sizes, learner: sizes.each(lambda i, o: rank(learner) + o),
    "waveft": lambda sizes, learner: len(sizes.linears) * int(parameter(learner, "frequencies")),
}
