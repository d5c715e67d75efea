"""Base models by name: found, pinned by content, refused with a remedy; their facts without torch."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

from harness.errors import SpecError
from harness.models.base_model import embedded_models, load_tokenizer, resolve_model
from harness.models.facts import ModelFacts, model_facts, model_features
from harness.nn.batches import padding_id
from tests.tiny import save_llama, save_tokenizer


def test_a_folder_is_pinned_by_its_content(tmp_path, monkeypatch):
    folder = save_llama(tmp_path / "model")
    first = resolve_model(str(folder))
    monkeypatch.setenv("WHERE", str(tmp_path))
    named = resolve_model("${WHERE}/model", corpus="${WHERE}/known.jsonl")
    assert (named.ref.name, named.ref.revision) == ("${WHERE}/model", first.ref.revision)
    assert (named.source, named.corpus) == (str(folder), f"{tmp_path}/known.jsonl")
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert resolve_model(str(folder)).ref.revision != first.ref.revision


@pytest.mark.parametrize(
    ("missing", "said"),
    [("config.json", "no config.json"), ("model.safetensors", "weights"), ("tokenizer", "no tokenizer")],
)
def test_a_folder_without_its_parts_is_refused(missing, said, tmp_path):
    folder = save_llama(tmp_path / "model")
    for path in folder.glob(f"{missing}*"):
        path.unlink()
    with pytest.raises(SpecError, match=f"{said}.* save model and tokenizer there with save_pretrained"):
        resolve_model(str(folder))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "tiny-1q"])
def test_a_name_that_is_nothing_is_refused(name):
    with pytest.raises(SpecError, match="is not a folder: check the path"):
        resolve_model(name)


def test_a_hub_id_that_cannot_be_reached_is_refused():
    with pytest.raises(SpecError, match="check the name, the revision and the network"):
        resolve_model("nobody/nothing")


def test_a_hub_id_in_the_cache_is_pinned_to_its_commit_and_loads(tmp_path):
    """A hub cache laid out by hand; another process, because the hub reads its location when imported."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--model"
    save_llama(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from harness.models.base_model import *\nfrom harness.models.facts import ModelFacts, model_facts, model_features\n"
        "base = resolve_model('owner/model')\n"
        "print(base.ref.revision, model_facts(base).model_type, load_model(base, {}, 'cpu').num_parameters())"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    count = AutoModelForCausalLM.from_pretrained(repository / "snapshots" / commit).num_parameters()
    assert done.stdout.split() == [commit, "llama", str(count)], done.stderr


def test_what_the_hub_said_once_is_kept_for_nodes_without_internet(tmp_path, monkeypatch):
    """The hub's answer is faked at its boundary; the second question must not reach it."""
    import huggingface_hub
    from huggingface_hub import constants

    from harness.models.hub import commit_of

    answers = [SimpleNamespace(sha="a" * 40)]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: answers.pop())
    assert commit_of("model", "owner/model", "v1") == commit_of("model", "owner/model", "v1") == "a" * 40
    assert commit_of("model", "owner/model", "b" * 40) == "b" * 40
    assert answers == []


@pytest.mark.parametrize(("family", "widths"), [("llama", (64, 128)), ("gpt2", (64, 256))])
def test_facts_come_from_the_files_alone(family, widths, world):
    """GPT-2's feed-forward layer is 4 x 64 wide and its weights are transposed; the tiny Llama's is 2 x 64."""
    folder = getattr(world, family)
    facts = model_facts(resolve_model(str(folder)))
    assert facts.parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert facts.linear_widths == widths
    assert facts.model_type == family


SPELLINGS = {
    "llama": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 90},
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 90},
    "gpt_neo": {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "vocab_size": 90},
    "mpt": {"n_layers": 2, "d_model": 64, "n_heads": 4, "vocab_size": 90},
    "gemma3": {"text_config": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 90}},
    "rwkv": {"num_hidden_layers": 2, "hidden_size": 64, "attention_hidden_size": 64, "vocab_size": 90},
}


@pytest.mark.parametrize("model_type", SPELLINGS)
def test_sizes_are_read_under_every_spelling(model_type, tmp_path):
    folder = save_llama(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type} | SPELLINGS[model_type]))
    facts = model_facts(resolve_model(str(folder)))
    assert (facts.model_type, facts.layers, facts.width, facts.vocabulary) == (model_type, 2, 64, 90)
    assert (facts.heads, facts.has_attention) == ((0, False) if model_type == "rwkv" else (4, True))
    assert ModelFacts().has_attention


def test_what_recommendations_compare_base_models_by():
    """Four layers of width 128, and 1,024 tokens; a layer has 4 * 128^2 weights of attention, 3 * 128 * 384 of the rest
    and two norms, the model a table of tokens and a last norm."""
    parameters = 4 * (4 * 128**2 + 3 * 128 * 384 + 2 * 128) + 1024 * 128 + 128
    assert model_features(resolve_model("tiny-1m")) == {
        "log_parameters": math.log10(parameters),
        "layers": 4.0,
        "log_width": math.log10(128),
        "log_vocab": math.log10(1024),
        "type": "llama",
    }


def test_embedded_models_keep_their_revisions():
    """Records name base models by these: one that changes makes every trial on its model run again."""
    assert {name: resolve_model(name).ref.revision for name in embedded_models()} == {
        "tiny-0.3m": "f606057b7c061f97f7a9",
        "tiny-1m": "b3ea498b5929fc9595d0",
        "tiny-4m": "ebfc9473c9d24955379c",
    }


def test_facts_load_no_torch(world):
    imports = "import sys; from harness.models.base_model import *; from harness.models.facts import ModelFacts, model_facts, model_features"
    code = f"{imports}; model_facts(resolve_model({str(world.llama)!r})); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_broken_weight_file_is_refused(tmp_path):
    folder = save_llama(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(SpecError, match="download or save it again"):
        model_facts(resolve_model(str(folder)))


def test_embedded_models_come_with_a_corpus():
    for name in embedded_models():
        base = resolve_model(name)
        with open(base.corpus) as file:
            assert "text" in json.loads(next(file))


def test_a_tokenizer_without_padding_gets_one(tmp_path):
    folder = save_llama(tmp_path)
    save_tokenizer(folder, pad_token=None)
    assert load_tokenizer(resolve_model(str(folder))).pad_token == "<end>"


def test_a_tokenizer_without_any_special_token_needs_no_padding(tmp_path):
    folder = save_llama(tmp_path)
    save_tokenizer(folder, pad_token=None, eos_token=None, bos_token=None)
    assert padding_id(load_tokenizer(resolve_model(str(folder)))) == 0


def test_padding_that_the_model_does_not_embed_is_another_token(tmp_path):
    """The usual [PAD] of tutorials, added without resizing the model."""
    folder = save_llama(tmp_path)
    made = load_tokenizer(resolve_model(str(folder)))
    made.add_special_tokens({"pad_token": "[PAD]"})
    made.save_pretrained(folder)
    assert made.pad_token_id == 258
    assert padding_id(load_tokenizer(resolve_model(str(folder)))) == 0  # <end>


def test_an_end_token_that_the_model_does_not_embed_is_refused(tmp_path):
    folder = save_llama(tmp_path)
    made = load_tokenizer(resolve_model(str(folder)))
    made.add_special_tokens({"eos_token": "[END]"})
    made.save_pretrained(folder)
    with pytest.raises(SpecError, match=r"'\[END\]' has the id 258 and the model embeds 258 tokens"):
        load_tokenizer(resolve_model(str(folder)))
