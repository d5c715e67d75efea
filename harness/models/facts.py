"""What can be known of a base model without loading its weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError
from harness.models.base_model import BaseModel

if TYPE_CHECKING:
    pass
LOOKUP_TABLES = ("embed", "wte", "wpe", "lm_head")


def model_facts(base: BaseModel) -> dict[str, Any]:
    """What can be known of a model without loading it.

    Returns:
        Its config, plus `parameters` (count, tied weights once), `linear_widths` (sorted in-features of its linear
        layers), `biases` (numbers in biases) and `bytes` (of its weights on disk).

    Raises:
        SpecError: When the config or a weight file cannot be read.
    """
    try:
        config: dict[str, Any] = json.loads((base.folder / "config.json").read_text())
        shapes = dict(_shapes(base.folder))
    except (OSError, ValueError, struct.error) as error:
        raise SpecError(
            f"base model {base.ref.name!r} must have a readable config.json and safetensors, but has not ({error}): "
            "download or save it again"
        ) from error
    if not shapes:
        raise SpecError(
            f"base model {base.ref.name!r} must have its weights as safetensors, but has none: choose a revision with "
            "them, or save it again with save_pretrained"
        )
    # GPT-2's Conv1D keeps weights as (in, out); every other linear layer as (out, in).
    transposed = config.get("model_type") in ("gpt2", "openai-gpt")
    widths = {
        shape[0 if transposed else 1]
        for name, shape in shapes.items()
        if len(shape) == 2 and not any(table in name for table in LOOKUP_TABLES)
    }
    weight_bytes = sum(path.stat().st_size for path in base.folder.glob("*.safetensors"))
    parameters = sum(math.prod(shape) for shape in shapes.values())
    biases = sum(shape[0] for name, shape in shapes.items() if name.rpartition(".")[2] == "bias" and len(shape) == 1)
    return config | {
        "parameters": parameters,
        "linear_widths": sorted(widths),
        "biases": biases,
        "bytes": weight_bytes,
    }


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every tensor, from the headers of the safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        yield from ((name, entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def model_features(base: BaseModel) -> dict[str, float | str]:
    """What is knowable of a base model without loading it; counts as decadic logarithms."""
    config = model_facts(base)

    def first(*names: str) -> float:
        return float(next((config[name] for name in names if config.get(name)), 1))

    return {
        "log_parameters": math.log10(first("parameters")),
        "layers": first("num_hidden_layers", "n_layer"),
        "log_width": math.log10(first("hidden_size", "n_embd")),
        "log_vocab": math.log10(first("vocab_size")),
        "type": str(config.get("model_type", "")),
    }
