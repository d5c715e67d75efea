"""What the headers of safetensors files say of the weights in them: names, shapes and number formats."""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import SpecError, one_line
from harness.files import parse_json

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configs call the number of layers."""
_SIZE = re.compile(r"(^|_)(size|dim|d|n|num)(_|$)")
"""Names of sizes and counts: `hidden_size`, `d_model`, `n_embd`, `num_experts`."""
HALF = {"BF16": "bfloat16", "F16": "float16"}
"""Number formats of two bytes, and what torch calls them."""


class Header(NamedTuple):
    """One tensor of a file."""

    name: str
    shape: list[int]
    form: str
    """Number format as safetensors names it, for example `BF16`."""

    @property
    def numbers(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def headers(folder: Path) -> Iterator[Header]:
    """Every tensor of a model folder.

    Raises:
        OSError, ValueError: When a file cannot be read, or is not whole.
    """
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            # The file begins with the header's length in bytes, then the header as JSON.
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if 8 + length > size:
                raise ValueError(f"{path.name} is cut off")
            raw = file.read(length)
        try:
            header = parse_json(raw)
        except ValueError as error:
            raise ValueError(f"the header of {path.name} is no JSON: {error}") from error
        if not isinstance(header, dict):
            raise ValueError(f"{path.name} has no table of tensors")
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            try:
                shape, form, end = entry["shape"], str(entry["dtype"]), int(entry["data_offsets"][1])
                found = Header(name, [int(width) for width in shape], form)
            except (TypeError, ValueError, OverflowError, LookupError) as error:
                raise ValueError(f"{path.name} does not say what {name!r} is") from error
            if 8 + length + end > size:
                raise ValueError(f"{path.name} is cut off")
            yield found


def check_sizes(name: str, folder: Path) -> None:
    """Refuse a model without safetensors, or with sizes that its weights cannot have.

    Each layer has a tensor, and no side of a tensor is longer than all of them have numbers.

    Libraries make as many layers, labels or heads as a config says before they look at the weights.

    Args:
        name: The model's.
        folder: Its files.

    Raises:
        SpecError: Where there are no tensors, or for the first such size.
        OSError, ValueError: When a weight file cannot be read, or is not whole.
    """
    held = list(headers(folder))
    if not held:
        raise SpecError(
            f"base model {name!r} must have its weights as safetensors, but has none: choose a revision with them, or download "
            "it into a folder and run 'harness convert FOLDER'"
        )
    tensors, numbers = len(held), sum(header.numbers for header in held)
    for key, value in _sizes(_config(folder)):
        if value > (tensors if key in LAYERS else numbers):
            raise SpecError(
                f"base model {name!r} must have a config.json that describes its weights, but that has {key} at {one_line(str(value), 20)} "
                f"and these are {numbers:,} numbers in {tensors:,} tensors: download or save them again, config and weights "
                "together"
            )


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """All sizes and counts in a config and in the configs within it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif isinstance(value, int) and _SIZE.search(key):
            yield key, value


def _config(folder: Path) -> dict[str, Any]:
    """What config.json says; nothing where it cannot be read, which is said elsewhere."""
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def held_type(folder: Path) -> str:
    """The type that a model's weights are held in: `bfloat16` or `float16` where config and files agree on 16 bits.

    A config may ask for float32 where files are in 16 bits to be small, and weights in float32 are never rounded because
    a config says so.

    Raises:
        OSError, ValueError: When a file cannot be read, or is not whole.
    """
    counts: Counter[str] = Counter()
    for header in headers(folder):
        counts[HALF.get(header.form, "float32")] += header.numbers
    stored = counts.most_common(1)[0][0] if counts else "float32"
    return "float32" if _stated(folder) == "float32" else stored


def _stated(folder: Path) -> str | None:
    """The type that the config asks for; None where it asks for none."""
    config = _config(folder)
    places = [place for place in (config, config.get("text_config")) if isinstance(place, dict)]
    return next((str(kind) for place in places if (kind := place.get("dtype") or place.get("torch_dtype"))), None)
