"""What the headers of safetensors files say of the weights in them: names, shapes and number formats."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
            header = _table(file.read(length), path)
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


def _table(raw: bytes, path: Path) -> object:
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError(f"the header of {path.name} is nested too deeply") from error


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
    """The type that the config asks for; None where it asks for none, or cannot be read, which is said elsewhere."""
    try:
        config = json.loads((folder / "config.json").read_text())
        places = (config, config.get("text_config") or {})
        return next((str(kind) for place in places if (kind := place.get("dtype") or place.get("torch_dtype"))), None)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
