"""Pickled weights as safetensors, without running what a pickled file may hold."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

from harness.errors import SpecError


def convert(folder: Path) -> Path:
    """Write a folder's pickled weights (`pytorch_model.bin`) as safetensors beside them; no code of theirs runs.

    Args:
        folder: A model folder.

    Returns:
        The file that was written.

    Raises:
        SpecError: When there are none, or they hold something else than tensors.
    """
    import torch
    from safetensors.torch import save_file

    target, files = folder / "model.safetensors", sorted(folder.glob("pytorch_model*.bin"))
    if target.exists() or not files:
        what = f"{target.name} already" if target.exists() else "no pytorch_model*.bin"
        raise SpecError(f"convert must be given a model folder with pickled weights only, but {folder} has {what}")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            # Only tensors and plain containers are unpickled, so that a foreign file can run nothing.
            content = torch.load(file, map_location="cpu", weights_only=True)
            tensors |= {name: value.contiguous() for name, value in dict(content).items()}
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            RuntimeError,
            LookupError,
            EOFError,
            UnpicklingError,
        ) as error:
            raise SpecError(
                f"{file} must hold a table of tensors and nothing else, but does not ({type(error).__name__}): "
                "such a file may run code when it is read, so it was not; ask its author for safetensors"
            ) from error
    memory: set[int] = set()
    for name, value in tensors.items():
        # safetensors refuses two names for the same memory, which tied weights have.
        place = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if place in memory else value
        memory.add(place)
    save_file(tensors, target, metadata={"format": "pt"})
    return target
