"""What is written down of errors and logs holds no secrets, and everything else as it was."""

import pytest

from harness.errors import one_line, redact


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"401 for hf_{'a' * 34}: log in", "401 for <token>: log in"),
        ("Authorization: Bearer abc.def-123456", "Authorization: Bearer <token>"),
        ("https://me:secret@hub.example/x and https://hub.example/y", "https://<token>@hub.example/x and https://hub.example/y"),
        (f"key sk-{'b' * 24}.", "key <token>."),
        ("hf-internal-testing/tiny-random, hf_short, a token sequence", "hf-internal-testing/tiny-random, hf_short, a token sequence"),
        ("the value is s3cr3t-value", "the value is <MY_API_KEY>"),
        ("parallelism is sometimes", "parallelism is sometimes"),
    ],
)  # fmt: skip
def test_secrets_are_left_out(text, kept, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-value")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "sometimes")
    assert redact(text) == kept
    assert one_line(text) == kept
