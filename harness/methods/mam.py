"""MAM adapter: prefix tuning at attention, scaled parallel adapters at the feed-forward parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.methods._prefixed import PrefixedMethod, with_prefix
from harness.methods.adapter_parallel import AdapterParallel
from harness.space import Float, Integer, Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Mam(PrefixedMethod, AdapterParallel):
    """A short prefix, trained directly, and a wide adapter: the paper's mix-and-match."""

    summary = "a short prefix at attention and wide parallel adapters at the feed-forward parts"
    trains = r".*\.adapter\.((down|up)\.(weight|bias)|scale)|prompt_encoder\.default\.embedding\.weight"
    # Its trials never train together, so that nothing need be equal.
    same: ClassVar[tuple[str, ...]] = ()
    space = AdapterParallel.space | {
        "learning_rate": Float(1e-4, 5e-2, default=1e-3, log=True),
        "virtual_tokens": Integer(1, 200, default=30, log=True),
    }

    def build(self, model: PreTrainedModel, params: Params) -> PreTrainedModel:
        """Adapters first, then the prefix around."""
        return with_prefix(AdapterParallel.build(self, model, params), params.integer("virtual_tokens"))
