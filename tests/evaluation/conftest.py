"""Models whose scores are known: uniform over the vocabulary, or sure of one text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def make_tokenizer(bos: bool) -> Any:
    """One token per byte; puts <s> in front of every text if `bos`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["</s>", "<s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*specials, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"eos_token": "</s>", "pad_token": "<pad>"} | ({"bos_token": "<s>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def make_model(context: int = 64, seed: int = 0) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer(bos=False)


@pytest.fixture(scope="session")
def bos_tokenizer() -> Any:
    return make_tokenizer(bos=True)


@pytest.fixture
def model() -> Any:
    """A random model."""
    return make_model()


@pytest.fixture
def uniform() -> Any:
    """Every token has probability 1/259 everywhere."""
    model = make_model()
    model.lm_head.weight.data.zero_()
    return model


@pytest.fixture
def token_after() -> Callable[[dict[int, int]], Any]:
    """Builds a model that is sure of the token that follows each token."""

    def build(successor: dict[int, int]) -> Any:
        import torch

        model = make_model()
        # Attention and MLP add nothing; each token's embedding is its own axis-like code, read out as its successor.
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
        codes = torch.nn.functional.normalize(torch.randn(259, 32), dim=1)
        model.model.embed_tokens.weight.data.copy_(codes)
        head = torch.zeros(259, 32)
        for token, following in successor.items():
            head[following] += 100 * codes[token]
        model.lm_head.weight.data.copy_(head)
        return model

    return build
