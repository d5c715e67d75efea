"""What there is, as `harness list` tells it."""

import re
from pathlib import Path

import pytest

from harness.cli.listing import inventory, inventory_text
from harness.plugins import AXES, load, names

ROOT = Path(__file__).parents[2]


def entry(kind, name):
    return next(one for one in inventory(ROOT, kind)[kind] if one.name == name)


@pytest.mark.parametrize("kind", AXES)
def test_every_file_is_listed(kind):
    assert [one.name for one in inventory(ROOT, kind)[kind]] == list(names(kind))


@pytest.mark.parametrize(
    ("kind", "name", "merges", "needs"),
    [
        ("methods", "bitfit", True, "layers with biases"),
        ("methods", "loftq", True, "a GPU"),
        ("methods", "prefix_tuning", False, ""),
        ("objectives", "dpo", None, "preference rows, the base as a reference"),
        ("objectives", "orpo", None, "preference rows"),
        ("objectives", "sft", None, ""),
    ],
)
def test_it_says_whether_a_choice_merges_and_what_it_needs(kind, name, merges, needs):
    one = entry(kind, name)
    assert (one.merges, one.requires) == (merges, needs)


def test_one_kind_is_shown_with_its_spaces():
    text = inventory_text(inventory(ROOT, "objectives"))
    assert "\n      needs preference rows, the base as a reference\n" in text
    assert (
        "\n      teacher                names of models, with weights if wanted: NAME or NAME=0.5,OTHER=0.25; default none\n"
        in text
    )
    assert "learning_rate" not in inventory_text(inventory(ROOT, None))


def test_recipes_are_listed_with_their_papers():
    assert {one.name for one in inventory(ROOT, "recipes")["recipes"]} == {
        path.stem for path in (ROOT / "studies" / "recipes").glob("*.yaml")
    }


def test_what_is_left_out_is_not_there_and_has_a_reason():
    there = {name for kind in (*AXES, "metrics") for name in names(kind)}
    left_out = inventory(ROOT, "left_out")["left_out"]
    assert {"brier", "lora", "sft"} <= there
    assert {"ppo"} <= {entry.name for entry in left_out}
    assert {entry.name for entry in left_out} & there == set()
    assert all(len(entry.summary) > 20 for entry in left_out)


def test_a_kind_goes_by_its_name_of_before_too():
    assert inventory(ROOT, "measures") == inventory(ROOT, "metrics")


def test_what_holds_a_method_back_is_shown(monkeypatch):
    monkeypatch.setattr(load("methods", "ia3"), "limits", "Learns little of this.")
    text = inventory_text(inventory(ROOT, "methods"))
    assert (
        "\n      merges, which weights it changes is not known before it runs\n      Learns little of this.\n      learning_rate "
        in text
    )


def test_a_method_that_stayed_below_half_of_full_tunings_gain_says_why():
    """As the committed table has it."""
    rows = re.findall(r"^\| `(\w+)` \| (.*)$", (ROOT / "benchmarks" / "catalogue.md").read_text(), re.MULTILINE)
    assert len(rows) > 80
    for name, row in rows:
        if load("methods", name).needs_training:
            share = re.search(r"(\d+%) \*\*below half", row)
            said = load("methods", name).limits
            assert bool(said) == bool(share), name
            assert share is None or f" {share[1]} of full tuning's gain" in said, name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rank", "whole number from 1 to 512, log scale; default 16"),
        ("learning_rate", "number from 1e-05 to 0.02, log scale; default 0.0002"),
    ],
)
def test_a_range_is_told_in_words(name, text):
    assert entry("methods", "lora").space[name] == text


@pytest.mark.parametrize(
    ("method", "covers"),
    [
        ("full", "changes weights of every kind, experts of mixtures too"),
        ("lora", "changes linear layers and experts of mixtures"),
        ("dora", "changes linear layers, no experts of mixtures"),
        ("bitfit", "changes biases"),
        ("prompt_tuning", "changes no weight of the base"),
    ],
)
def test_which_weights_a_method_changes_is_told(method, covers, tmp_path):
    entry = next(entry for entry in inventory(tmp_path, "methods")["methods"] if entry.name == method)
    assert entry.covers == covers
