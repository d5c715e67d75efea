"""What the doctor says of a GPU that torch does not see."""

import pytest
import torch

from harness.cli import doctor


@pytest.mark.parametrize(
    ("cuda", "seen", "level"),
    [("12.8", "NVIDIA X1", "error"), ("12.8", None, "note"), (None, "NVIDIA X1", "note")],
    ids=["an old driver", "a login node", "torch for processors"],
)
def test_a_gpu_that_torch_cannot_use_is_an_error_only_where_there_is_one(cuda, seen, level, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor, "gpu_name", lambda: seen)
    finding = doctor._device(tmp_path)
    assert finding.level == level
    assert (seen or "no GPU") in finding.text or cuda is None
