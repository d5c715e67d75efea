"""What is wrong with a model that a user brings is one sentence, before anything is spent on it."""

import json
import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file

from harness.errors import SpecError
from harness.evaluation.generation import check_settings
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.models.convert import convert
from harness.models.soundness import check_model
from tests.tiny import kind_config, save_gpt2, save_kind, save_llama

CODE = "open({mark!r}, 'w').write('ran')\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"


@pytest.fixture
def folder(world, tmp_path):
    return shutil.copytree(world.llama, tmp_path / "model")


def changed(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def scribble(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def short(folder):
    (folder / "model.safetensors").write_bytes(b"{}")


def lost_layer(folder):
    weights(folder, lambda tensors: {name: t for name, t in tensors.items() if "layers.1." not in name})


def fewer_layers(folder):
    changed(folder / "config.json", num_hidden_layers=1)


def other_width(folder):
    changed(folder / "config.json", intermediate_size=96)


def small_vocabulary(folder):
    changed(folder / "config.json", vocab_size=200)
    weights(folder, lambda t: t | {"model.embed_tokens.weight": t["model.embed_tokens.weight"][:200].clone()})


def unknown_kind(folder):
    changed(folder / "config.json", model_type="nobody_knows")


def encoder_decoder(folder):
    changed(folder / "config.json", model_type="t5")


def no_config(folder):
    (folder / "config.json").write_text("[1, 2")


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": 3}')


def code_in_config(folder):
    changed(folder / "config.json", model_type="theirs", auto_map={"AutoConfig": "theirs.Config"})


def code_in_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    changed(
        folder / "tokenizer_config.json", tokenizer_class="Theirs", auto_map={"AutoTokenizer": ["theirs.Theirs", None]}
    )


FAULTS = {
    cut: "is cut off",
    scribble: "is cut off",
    short: "is cut off",
    lost_layer: "lacks model.layers.1",
    fewer_layers: "no more layers, but has model.layers.1",
    other_width: "weights that its config.json describes",
    small_vocabulary: "an embedding for every token of its tokenizer, but has 200",
    unknown_kind: "a readable config.json",
    encoder_decoder: "has an encoder and a decoder",
    no_config: "a readable config.json",
    broken_tokenizer: "a readable tokenizer",
    code_in_config: "code of its own, which is never run, but config.json names some",
    code_in_tokenizer: "code of its own, which is never run, but tokenizer_config.json names some",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_sentence(fault, folder):
    fault(folder)
    with pytest.raises(SpecError, match=FAULTS[fault]) as raised:
        check_model(resolve_model(str(folder)))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize("save", [save_llama, save_gpt2])
def test_a_sound_model_passes(save, tmp_path):
    save(tmp_path)
    assert check_model(resolve_model(str(tmp_path))) == []


def test_weights_that_it_has_no_place_for_are_noted(folder):
    weights(folder, lambda tensors: tensors | {"vision.patch.weight": torch.ones(3)})
    (note,) = check_model(resolve_model(str(folder)))
    assert note.endswith("were left out (vision.patch.weight)")


def test_made_up_weights_are_never_trained(folder):
    lost_layer(folder)
    with pytest.raises(SpecError, match="is missing"):
        load_model(resolve_model(str(folder)), {}, "cpu")


def code_for_a_kind_that_is_known(folder):
    changed(folder / "config.json", auto_map={"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"})


def code_for_a_tokenizer_that_is_known(folder):
    changed(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]})


def code_in_processor(folder):
    for name in ("processor_config.json", "preprocessor_config.json"):
        brings = {"processor_class": "Theirs", "auto_map": {"AutoProcessor": "theirs.Theirs"}}
        (folder / name).write_text(json.dumps(brings))


def code_for_generation(folder):
    (folder / "custom_generate").mkdir()
    shutil.move(folder / "theirs.py", folder / "custom_generate" / "generate.py")
    (folder / "generation_config.json").write_text(json.dumps({"custom_generate": ".", "trust_remote_code": True}))


REFUSED = (code_in_config, code_in_tokenizer)
IGNORED = (code_for_a_kind_that_is_known, code_for_a_tokenizer_that_is_known, code_in_processor, code_for_generation)


@pytest.mark.parametrize("fault", [*REFUSED, *IGNORED], ids=lambda fault: fault.__name__)
def test_nothing_asks_and_no_code_of_the_folder_runs(fault, folder, tmp_path, monkeypatch):
    """Transformers would ask whether to run it, and a `y` on standard input ran it."""
    mark, asked = tmp_path / "ran", []
    (folder / "theirs.py").write_text(CODE.format(mark=str(mark)))
    fault(folder)
    monkeypatch.setattr("builtins.input", lambda *said: asked.append(said) or "y")
    monkeypatch.chdir(folder)

    def used():
        base = resolve_model(str(folder))
        check_model(base)
        model, tokenizer = load_model(base, {}, "cpu"), load_tokenizer(base)
        built = SimpleNamespace(instances=[SimpleNamespace(args=("", {"until": [], "max_gen_toks": 4}))])
        built.config = SimpleNamespace(task="t")
        check_settings(base, tokenizer, built)
        model.generate(torch.zeros((1, 1), dtype=torch.long), max_length=3)

    if fault in REFUSED:
        with pytest.raises(SpecError, match="code of its own, which is never run"):
            used()
    else:
        used()
    assert not asked
    assert not mark.exists()


@pytest.mark.parametrize(("offline", "said"), [(True, "but the hub is switched off"), (False, "but it is none")])
def test_a_model_that_the_hub_does_not_give(offline, said, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("harness.models.base_model.commit_of", refusing(OSError("no route")))
    with pytest.raises(SpecError, match=rf"base model 'a/b' must be embedded .*, {said}"):
        resolve_model("a/b")


@pytest.mark.parametrize("place", ["harness.models.base_model.commit_of", "huggingface_hub.snapshot_download"])
def test_a_model_that_wants_terms_accepted(place, monkeypatch):
    """The hub may tell a model's commit, and refuse its files."""
    gated = GatedRepoError("gated", response=SimpleNamespace(headers={}, request=None))
    monkeypatch.setattr("harness.models.base_model.commit_of", lambda *_: "0" * 40)
    monkeypatch.setattr(place, refusing(gated))
    with pytest.raises(SpecError, match="accepted its terms: accept them on its page and log in"):
        resolve_model("a/b")


def test_a_hub_model_without_safetensors_is_told_how_to_convert(folder, monkeypatch):
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("harness.models.base_model.commit_of", lambda *_: "0" * 40)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(
        SpecError, match=r"has none: choose a revision with them, or download it .* 'harness convert FOLDER'"
    ):
        resolve_model("a/b")


def refusing(error):
    def refuse(*_, **__):
        raise error

    return refuse


@pytest.mark.parametrize("revision", ["../other", "a/../../b", "/etc", "-x"])
def test_a_revision_is_no_path(revision):
    with pytest.raises(SpecError, match="must be a commit, tag or branch"):
        resolve_model("owner/model", revision)


def test_pickled_weights_are_converted_without_running_them(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {"tied.weight": tensors["model.norm.weight"]}, folder / "pytorch_model.bin")
    with pytest.raises(SpecError, match="run 'harness convert"):
        resolve_model(str(folder))
    written = load_file(convert(folder))
    assert torch.equal(written.pop("tied.weight"), tensors["model.norm.weight"])
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(SpecError, match="already"):
        convert(folder)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_a_pickle_that_runs_code_is_not_converted(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(SpecError, match="may run code"):
        convert(folder)
    assert not (tmp_path / "ran").exists()
    assert not (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("dtype", "stated", "held"),
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", None, "bfloat16"),
        ("float16", "float16", "float16"),
        ("float16", "float32", ""),  # stored small, as the embedded models are
        ("float32", "bfloat16", ""),  # nothing is rounded because a config says so
        ("float32", "float32", ""),
    ],
)
def test_a_base_is_held_in_the_type_of_its_checkpoint(dtype, stated, held, folder):
    plain = resolve_model(str(folder))
    changed(folder / "config.json", dtype=stated)
    weights(folder, lambda tensors: {name: t.to(getattr(torch, dtype)) for name, t in tensors.items()})
    base = resolve_model(str(folder))
    assert (base.ref.dtype, plain.ref.dtype) == (held, "")
    assert load_model(base, {}, "cpu").dtype == getattr(torch, held or "float32")
    assert load_tokenizer(base).pad_token == "<pad>"


@pytest.mark.parametrize("kind", ["bert", "roberta", "rembert", "xlm"])
def test_a_model_that_sees_what_comes_after_is_refused(kind, tmp_path):
    """transformers has causal classes of these, which attend to all tokens unless their configs say otherwise."""
    with pytest.raises(SpecError, match=f"a {kind} sees the tokens that come after, and so what it is to predict"):
        check_model(resolve_model(str(save_kind(tmp_path / kind, kind))))


@pytest.mark.parametrize(("kind", "settings"), [("gpt_neox", {}), ("bert", {"is_decoder": True})])
def test_a_decoder_passes_whatever_its_kind(kind, settings, tmp_path):
    """The config of a GPT-NeoX says `is_decoder: false`, of a decoder."""
    assert check_model(resolve_model(str(save_kind(tmp_path / kind, kind, **settings)))) == []


def test_a_model_that_sees_pictures_is_refused_and_its_text_part_is_not(tmp_path):
    text = json.loads(kind_config("gemma3_text").to_json_string())
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    whole = save_kind(tmp_path / "whole", "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    with pytest.raises(SpecError, match=r"a gemma3 has more than text \(vision_config\)"):
        check_model(resolve_model(str(whole)))
    assert check_model(resolve_model(str(save_kind(tmp_path / "text", "gemma3_text")))) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_offsets", ["a", "b"]),
        ("data_offsets", [0, None]),
        ("data_offsets", [0, 1e400]),
        ("shape", [1e400]),
        ("shape", 5),
    ],
)
def test_a_header_with_values_of_other_types_is_refused(key, value, folder):
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    table = json.loads(raw[8 : 8 + length])
    table["model.norm.weight"][key] = value
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    with pytest.raises(SpecError, match=r"model.safetensors does not say what 'model.norm.weight' is"):
        resolve_model(str(folder))


def test_a_header_that_is_nested_too_deeply_is_refused(folder):
    header = b'{"a":' * 20_000
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(SpecError, match=r"the header of model.safetensors is no JSON: it is nested too deeply"):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    ("save", "size"),
    [
        (save_llama, {"num_hidden_layers": 10**30}),
        (save_llama, {"num_hidden_layers": 10**6}),
        (save_llama, {"num_labels": 10**30}),
        (save_llama, {"vocab_size": 10**9}),
        (save_llama, {"head_dim": 10**9}),
        (save_llama, {"text_config": {"hidden_size": 10**400}}),
        (save_gpt2, {"n_layer": 40}),
        (save_gpt2, {"n_positions": 10**12}),
    ],
    ids=lambda value: value.__name__ if callable(value) else ",".join(value),
)
def test_sizes_that_the_weights_cannot_have_are_refused(save, size, tmp_path):
    """Of 10^30 layers or labels transformers makes as many as memory holds, before it looks at a weight."""
    save(tmp_path)
    changed(tmp_path / "config.json", **size)
    with pytest.raises(SpecError, match=r"must have a config.json that describes its weights, but that has") as raised:
        resolve_model(str(tmp_path))
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("settings", [{"model_max_length": {"value": 64}}, {"chat_template": [5]}])
def test_a_tokenizer_whose_settings_break_it_is_refused(settings, folder):
    changed(folder / "tokenizer_config.json", **settings)
    with pytest.raises(SpecError, match="must have a readable tokenizer"):
        check_model(resolve_model(str(folder)))
