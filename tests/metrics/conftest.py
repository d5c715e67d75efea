"""Models whose scores are known."""

from tests.evaluation.conftest import model, token_after, tokenizer, uniform

__all__ = ["model", "token_after", "tokenizer", "uniform"]
