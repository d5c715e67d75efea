"""Base models: what a name stands for, pinned; facts, weights and tokenizer."""
