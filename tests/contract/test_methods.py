"""Every method on a two-layer Llama, a GPT-2 (transposed layers, biases) and an RWKV: what moves, and what is kept.

One test for each method, so that a method that is broken is one failure, with every check that it fails.
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.axes.contract import Situation
from harness.models.base_model import resolve_model
from harness.models.facts import model_facts
from harness.plugins import load, names
from harness.trial.model_folder import TUNED, save_model
from tests.contract import checks
from tests.contract.counts_native import COUNTS as NATIVE
from tests.contract.counts_peft import COUNTS as PEFT
from tests.contract.sizes import SIZES
from tests.patience import THOROUGH
from tests.tiny import logits, save_tokenizer

METHODS = [name for name in names("methods") if load("methods", name).needs_training]


@pytest.fixture(scope="session")
def rwkv(tmp_path_factory, shared_data):
    """A real checkpoint, with the tiny tokenizer: its own has no token for padding."""
    folder = tmp_path_factory.mktemp("rwkv")
    for path in (shared_data / "checkpoints" / "tiny-rwkv4").iterdir():
        if path.name == "config.json" or path.suffix == ".safetensors":
            shutil.copyfile(path, folder / path.name)
    save_tokenizer(folder)
    written = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]  # of 258 tokens, and PEFT would make the model fit them
    written["model"]["vocab"] = {token: place for token, place in vocabulary.items() if place < 256}
    (folder / "tokenizer.json").write_text(json.dumps(written))
    return folder


@pytest.fixture(scope="session")
def loaders():
    """By kind of folder, a process that loads models as their users would."""
    running = {}

    def ask(kind, folder):
        if kind not in running:
            command = [sys.executable, "-m", "tests.contract.reload", kind]
            root = Path(__file__).parents[2]
            running[kind] = subprocess.Popen(
                command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        process = running[kind]
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        answer = process.stdout.readline().strip()
        assert answer == "done", answer
        return torch.load(folder / "logits.pt")

    yield ask
    for process in running.values():
        process.communicate()


def saved_models_give_the_same_logits_in_a_new_process(case, folder, loaders):
    """A merged model through transformers alone, an adapter through PEFT, anything else through `load_tuned`."""
    save_model(folder, case.learner, resolve_model(str(case.folder)))
    quantised = "quantization_config" in case.method.load_options(case.params, "cpu")
    adapter = "adapter" if (folder / "adapter_config.json").exists() and not quantised else "native"
    kind = "whole" if case.method.mergeable else adapter
    torch.testing.assert_close(loaders(kind, folder), logits(case.model), atol=1e-4, rtol=0)
    assert kind != "native" or (folder / TUNED).exists()
    if case.method.unmerged and case.method.mergeable:
        save_model(folder / "apart", case.learner, resolve_model(str(case.folder)), "adapter")
        torch.testing.assert_close(loaders("adapter", folder / "apart"), logits(case.model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_method(name, request, world, loaders, tmp_path):
    """All checks of `checks`, on every architecture that the method does not refuse; outside CI on the first of them."""
    refused, failed, accepted = [], [], 0
    turn = METHODS.index(name) % len(SIZES)  # so that methods begin with different ones
    for family in [*SIZES, *SIZES][turn : turn + len(SIZES)]:
        if accepted and not THOROUGH:
            break
        try:
            folder = request.getfixturevalue("rwkv") if family == "rwkv" else getattr(world, family)
        except pytest.skip.Exception as skipped:
            refused.append(str(skipped))
            continue
        facts = model_facts(resolve_model(str(folder)))
        if reason := load("methods", name)().skip(Situation(device="cpu", model=facts)):
            refused.append(f"{family}: {reason}")
            continue
        case = checks.build(name, family, folder)
        once = () if accepted else (checks.the_same_seed_gives_the_same_bits,)
        failed += checks.failures(case, (*checks.EVERY, *once))
        try:
            saved_models_give_the_same_logits_in_a_new_process(case, tmp_path / family, loaders)
        except Exception as error:
            failed.append(f"on {family}, saved and loaded: {type(error).__name__}: {error}")
        accepted += 1
    assert not failed, "\n".join(failed)
    if not accepted:
        pytest.skip("; ".join(refused))


def test_every_method_has_a_formula():
    assert sorted(PEFT | NATIVE) == sorted(METHODS)
    assert not set(PEFT) & set(NATIVE)


def test_rates_are_searched_over_at_least_two_decades():
    for name in METHODS:
        rate = load("methods", name).space["learning_rate"]
        assert math.log10(rate.high / rate.low) >= 2, name
