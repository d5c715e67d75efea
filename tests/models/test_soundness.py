"""What is wrong with a model that a user brings is one sentence, before anything is spent on it."""

import json
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import SpecError
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


def test_nothing_asks_and_no_code_of_the_folder_runs(world, tmp_path):
    """Transformers would ask whether to run it, and a `y` on standard input ran it."""
    mark = tmp_path / "ran"
    for fault in (code_in_config, code_in_tokenizer):
        folder = shutil.copytree(world.llama, tmp_path / fault.__name__)
        (folder / "theirs.py").write_text(CODE.format(mark=str(mark)))
        fault(folder)
    script = (
        "import sys\n"
        "from harness.errors import SpecError\n"
        "from harness.models.base_model import load_model, load_tokenizer, resolve_model\n"
        "from harness.models.soundness import check_model\n"
        "for base in map(resolve_model, sys.argv[1:]):\n"
        "    for do in (check_model, lambda b: load_model(b, {}, 'cpu'), load_tokenizer):\n"
        "        try:\n"
        "            do(base)\n"
        "        except (SpecError, ValueError) as error:\n"
        "            print(type(error).__name__)\n"
    )
    folders = [str(tmp_path / fault.__name__) for fault in (code_in_config, code_in_tokenizer)]
    command = [sys.executable, "-c", script, *folders]
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, check=True)
    assert not mark.exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert done.stdout.count("SpecError") >= 2


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
    ids=str,
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
