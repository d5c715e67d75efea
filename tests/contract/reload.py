"""Loads tuned models in a process of its own and writes their logits: `python -m tests.contract.reload KIND`.

KIND says who loads them: plain transformers (`whole`), PEFT (`adapter`) or the harness (`native`). Folders come line by
line on standard input; each is answered by `done` or by what went wrong.
"""

import sys
from pathlib import Path


def main(kind: str) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    if kind == "native":
        from harness.trial.model_folder import load_tuned

        load = load_tuned
    else:
        load = {"whole": AutoModelForCausalLM, "adapter": AutoPeftModelForCausalLM}[kind].from_pretrained
    ids = torch.arange(5, 45).reshape(2, 20)
    for line in sys.stdin:
        folder = Path(line.strip())
        try:
            with torch.no_grad():
                torch.save(load(folder).eval()(input_ids=ids).logits[:, -20:].contiguous(), folder / "logits.pt")
            assert kind == "native" or "harness" not in sys.modules
            print("done", flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
