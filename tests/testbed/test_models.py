"""The shipped models load, know what they should, and can be rebuilt."""

import hashlib
import json

import pytest

from harness.testbed import MODELS, corpus
from harness.testbed.build import HELD_OUT_ROWS, LOSS_TOLERANCE, build, corpus_tokenizer
from harness.testbed.sizes import SIZES

transformers = pytest.importorskip("transformers")
pretrain = pytest.importorskip("harness.testbed.pretrain")

SENTENCES = ["Copy a b c : a b c.", "Add 12+345=357.", 'He said: "Grüße, 世界!"\n\tok', " leading and trailing "]


@pytest.fixture(scope="module")
def tokenizer():
    return corpus_tokenizer()


@pytest.mark.parametrize("name", sorted(SIZES))
def test_shipped_tokenizer_is_rebuilt_byte_for_byte(name, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / file).read_bytes() == (MODELS / name / file).read_bytes()


def test_tokenizer_round_trip_and_bos_policy():
    loaded = transformers.AutoTokenizer.from_pretrained(MODELS / "tiny-1m")
    assert [loaded.decode(loaded(text)["input_ids"]) for text in SENTENCES] == SENTENCES
    assert len(loaded) == 1024
    assert loaded.bos_token == loaded.eos_token == "<|endoftext|>"
    assert loaded.pad_token_id != loaded.eos_token_id
    # Nothing is added, and a prompt's tokens are the beginning of the tokens of prompt and answer.
    for prompt, answer in [("Copy a b :", " a b."), ("Add 1+2=", "3."), ("Find a in b1 a2 : a", "2.")]:
        whole, ids = loaded(prompt + answer)["input_ids"], loaded(prompt)["input_ids"]
        assert whole[: len(ids)] == ids
        assert loaded.eos_token_id not in whole


@pytest.mark.parametrize("name", sorted(SIZES))
def test_model_loads_in_float32_with_its_held_out_loss(name, tokenizer):
    model = transformers.AutoModelForCausalLM.from_pretrained(MODELS / name)
    held_out = pretrain.packed_rows(tokenizer, corpus.documents("held out"), HELD_OUT_ROWS)
    stated = json.loads((MODELS / name / "curve.json").read_text())[-1]
    assert str(model.dtype) == "torch.float32"
    assert stated["tokens"] == SIZES[name].tokens // 2048 * 2048
    assert pretrain.held_out_loss(model, held_out) == pytest.approx(stated["loss"], abs=LOSS_TOLERANCE / 10)


def test_loss_falls_with_model_size_at_nine_million_tokens():
    losses = []
    for name in ("tiny-0.3m", "tiny-1m", "tiny-4m"):
        curve = json.loads((MODELS / name / "curve.json").read_text())
        losses.append([point["loss"] for point in curve if point["tokens"] <= 9_000_000][-1])
    assert losses == sorted(losses, reverse=True)


def test_shipped_models_are_small():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 12e6


@pytest.mark.thorough
def test_training_twice_gives_the_same_bytes(tmp_path):
    digests = set()
    for attempt in ("first", "second"):
        build(tmp_path / attempt, ["tiny-0.3m"], tokens=20_480)
        weights = (tmp_path / attempt / "models" / "tiny-0.3m" / "model.safetensors").read_bytes()
        digests.add(hashlib.sha256(weights).hexdigest())
    assert len(digests) == 1


def test_build_refuses_unknown_models(tmp_path):
    with pytest.raises(ValueError, match=r"tiny-9m"):
        build(tmp_path, ["tiny-9m"])


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    rates = [pretrain.learning_rate_at(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 3)  # 3 of 100 steps warm up
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_packed_rows_hold_whole_documents(tokenizer):
    rows = pretrain.packed_rows(tokenizer, corpus.documents("packing"), 40)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert rows.shape == (40, 128)
    assert (rows != pad).mean() > 0.95
    for row in rows.tolist():
        text = row[: row.index(pad)] if pad in row else row
        assert text[-1] == end
    starts = [row[0] == end for row in rows.tolist()]
    assert 0.3 < sum(starts) / 40 < 0.7
