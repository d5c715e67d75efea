"""Loads tuned models in a process of its own and writes their logits: `python -m tests.contract.reload REQUEST`.

REQUEST is a JSON file of folders by loader. Those that plain transformers or PEFT must load come before harness is
imported for the others.
"""

import json
import sys
from pathlib import Path


def main(request: Path) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    ids = torch.arange(5, 45).reshape(2, 20)
    folders = json.loads(request.read_text())
    found = {}

    def keep(name, model):
        with torch.no_grad():
            found[name] = model.eval()(input_ids=ids).logits[:, -20:].contiguous()

    for loader, key in ((AutoModelForCausalLM, "whole"), (AutoPeftModelForCausalLM, "adapter")):
        for name, folder in folders[key].items():
            keep(name, loader.from_pretrained(folder))
    assert "harness" not in sys.modules
    if folders["native"]:
        from harness.trial.model_folder import load_tuned

        for name, folder in folders["native"].items():
            keep(name, load_tuned(Path(folder)))
    save_file(found, request.with_suffix(".safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
