"""AdaLoRA: LoRA in the form of a singular value decomposition, whose rank shrinks where it matters least."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods._stacking import ADAPTER
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class AdaLora(LayerMethod):
    """Starts with `start_ratio` times the rank, drops the singular values of least importance, and ends with `rank` on average.

    Importance is gradient times value, smoothed.
    """

    summary = "low-rank updates whose ranks shrink to where they matter"
    paper = "Zhang et al. 2023, arXiv 2303.10512"
    kind = "AdaLoraConfig"
    trains = r".*\.lora_[ABE]\.default"
    alone = "it shares its ranks out among all layers"
    space = {
        "learning_rate": Float(1e-5, 5e-2, default=1e-3, log=True),
        "rank": Integer(1, 256, default=8, log=True),
        "start_ratio": Float(1.0, 4.0, default=1.5, searched=False),
        "alpha": Float(1.0, 512.0, default=32.0, log=True, searched=False),
        # shares of the steps with the full rank at the start, and with the last ranks at the end
        "full_share": Float(0.0, 0.5, default=0.1, searched=False),
        "final_share": Float(0.0, 0.9, default=0.5, searched=False),
        "orthogonality": Float(0.0, 1.0, default=0.5, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """The schedule in steps; importance must be gathered in one step at least before ranks are final."""
        params, steps = setup.params, max(4, setup.steps)
        # PEFT refuses a schedule whose phases leave it no step to shrink ranks in.
        first = min(round(params.number("full_share") * steps), steps - 3)
        final, rank = round(params.number("final_share") * steps), params.integer("rank")
        last, start = min(final, steps - first - 2), round(params.number("start_ratio") * rank)
        if last < final:
            setup.note(f"final_share was cut to {last} of {steps} steps: ranks shrink in two steps at least")
        if start <= rank:
            setup.note(f"layers start with a rank of {rank + 1}, one above the last: else there is none to drop")
        return {
            "init_r": max(rank + 1, start),
            "target_r": rank,
            "lora_alpha": params.number("alpha"),
            "tinit": first,
            "tfinal": last,
            "total_step": steps,
            # PEFT shares ranks out every deltaT steps, which sorts all importances: about a hundred times is enough.
            "deltaT": max(1, (steps - first - last) // 100),
            "orth_reg_weight": params.number("orthogonality"),
        }

    def penalty(self, model: PreTrainedModel, setup: StageSetup) -> Callable[[], Tensor] | None:
        """How far the factors are from orthonormal, as PEFT adds it where the model computes the loss."""
        import torch

        weight = setup.params.number("orthogonality")
        factors = [(p, ".lora_A." in n) for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n]

        def term() -> Tensor:
            squares = [p @ p.T if rows else p.T @ p for p, rows in factors]
            # PEFT adds this term in a forward pass with labels only, which the loop here does not use.
            norms = [torch.linalg.norm(s - torch.eye(len(s), device=s.device, dtype=s.dtype)) for s in squares]
            return weight * torch.stack(norms).mean()

        return term

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """Gather importance, and set singular values to zero that are over the step's budget."""
        model.base_model.update_and_allocate(step)

    def state(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Importance so far, and which singular values are left."""
        import torch

        allocator, pattern = model.base_model.rankallocator, model.peft_config[ADAPTER].rank_pattern or {}
        tensors = {f"importance/{name}": value for name, value in allocator.exp_avg_ipt.items()}
        tensors |= {f"uncertainty/{name}": value for name, value in allocator.exp_avg_unc.items()}
        # Which ranks are left stands in the configuration, not in a buffer, so that a checkpoint would miss it.
        return tensors | {f"left/{name}": torch.tensor(rows) for name, rows in pattern.items()}

    def load_state(self, model: PreTrainedModel, state: dict[str, Tensor]) -> None:
        """Put importance and ranks back."""
        allocator, pattern = model.base_model.rankallocator, {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "importance":
                allocator.exp_avg_ipt[name], allocator.ipt[name] = value, value
            elif kind == "uncertainty":
                allocator.exp_avg_unc[name] = value
            else:
                pattern[name] = value.tolist()
        model.peft_config[ADAPTER].rank_pattern = pattern or None
