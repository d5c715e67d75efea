"""How many numbers each of the harness's own methods trains, from the dimensions of a model alone.

A method maps to a function of the base model and the stage's parameters.
"""

from collections.abc import Callable


def linear(model):
    """(in, out) of every linear layer inside the blocks of a tiny Llama, GPT-2 or RWKV; layer by layer."""
    config, width = model.config, model.config.hidden_size
    inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None) or 4 * width
    square, up, down = (width, width), (width, inner), (inner, width)
    layers = {
        "llama": [square] * 4 + [up, up, down],
        "gpt2": [(width, 3 * width), square, up, down],
        "rwkv": [square] * 5 + [up, down],
    }[config.model_type]
    return [layers] * config.num_hidden_layers


def weights(model):
    return sum(i * o for layer in linear(model) for i, o in layer)


def everything(model, params):
    return sum(p.numel() for p in model.parameters())


def biases(model, params):
    """GPT-2: one per output of a linear layer, and of two norms in a layer and one at the end. RWKV: those of norms."""
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    if model.config.model_type == "gpt2":
        return sum(o for layer in linear(model) for _, o in layer) + (2 * layers + 1) * width
    assert model.config.model_type == "rwkv"  # two norms in a layer, one before the first, one behind the last
    return (2 * layers + 2) * width


def of_layers(model, count):
    """All numbers of `count` layers that are alike."""
    width, kind = model.config.hidden_size, model.config.model_type
    matrices = sum(i * o for i, o in linear(model)[0])
    outputs = sum(o for _, o in linear(model)[0])
    rest = {"llama": 2 * width, "gpt2": outputs + 4 * width, "rwkv": (4 + 2 + 3 + 2) * width}[kind]
    # RWKV: four vectors of two norms, two of decay, three and two that mix tokens; its first layer has a norm more
    return count * (matrices + rest)


def layer_freezing(model, params):
    count = max(1, round(params["trained_share"] * model.config.num_hidden_layers))
    first = params["trained_end"] == "first" or count == model.config.num_hidden_layers
    extra = 2 * model.config.hidden_size if model.config.model_type == "rwkv" and first else 0
    return of_layers(model, count) + extra


def adapter(width, inner):
    return width * inner + inner + inner * width + width


def serial(per_layer):
    def count(model, params):
        width = model.config.hidden_size
        return model.config.num_hidden_layers * per_layer * adapter(width, max(1, width // params["reduction"]))

    return count


def parallel(model, params):
    own = adapter(model.config.hidden_size, params["bottleneck"]) + bool(params["learned_scale"])
    return model.config.num_hidden_layers * own


def prefix(model, params):
    """A key and a value for each virtual token, head of keys and layer."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * config.hidden_size // config.num_attention_heads
    return params["virtual_tokens"] * config.num_hidden_layers * 2 * width


def unipelt(model, params):
    config, width = model.config, model.config.hidden_size
    rank = params["rank"]
    # LoRA of queries and values, each with a gate of its own: apart in a Llama, one product of three in a GPT-2
    pairs = {"llama": [(width, width)] * 2, "gpt2": [(width, 3 * width)]}[config.model_type]
    lora = sum(rank * (i + o) + i + 1 for i, o in pairs)
    gated = adapter(width, max(1, width // params["reduction"])) + width + 1
    return config.num_hidden_layers * (lora + gated + 1) + prefix(model, params)


def fusion(model, params):
    width = model.config.hidden_size
    return model.config.num_hidden_layers * (3 * width * width + 2 * width)


def sora(model, params):
    return sum(params["rank"] * (i + o + 1) for layer in linear(model) for i, o in layer)


def diff_pruning(model, params):
    return 2 * weights(model) + sum(len(layer) for layer in linear(model))


def dp_lora(model, params):
    return sum(params["rank"] * (i + o) for layer in linear(model) for i, o in layer)


def high_dropout(model, params):
    return everything(model, params) if params["trained_part"] == "all" else model.lm_head.weight.numel()


COUNTS: dict[str, Callable] = {
    "adapter_fusion": fusion,
    "adapter_houlsby": serial(2),
    "adapter_parallel": parallel,
    "adapter_pfeiffer": serial(1),
    "apollo": everything,
    "bitfit": biases,
    "diff_pruning": diff_pruning,
    "dp_lora": dp_lora,
    "far": everything,
    "fishmask": lambda model, params: round(params["mask_share"] * weights(model)),
    "galore": everything,
    "high_dropout": high_dropout,
    "intrinsic_dimension": lambda model, params: params["dimension"],
    "layer_freezing": layer_freezing,
    "lisa": everything,
    "mam": lambda model, params: parallel(model, params) + prefix(model, params),
    "sora": sora,
    "spider": everything,
    "unipelt": unipelt,
}
