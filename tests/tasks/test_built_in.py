"""lm-eval's own names mean what its `TaskManager` says, without parsing its files and without any data."""

from __future__ import annotations

from typing import Any

import pytest

from harness.tasks.built_in import index
from harness.tasks.group import TaskGroup, find

SEVEN = ("mmlu", "glue", "super-glue-lm-eval-v1", "mmlu_pro", "minerva_math", "agieval", "leaderboard")


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """lm-eval's index of all names, with the keys of their files."""
    from lm_eval.tasks import TaskManager

    entries: dict[str, Any] = TaskManager().task_index
    return entries


def leaves(entries: dict[str, Any], name: str) -> list[str]:
    """The tasks that a name means, by lm-eval's own entries."""
    entry = entries[name]
    if entry.kind.name in ("TASK", "PY_TASK"):
        return [name]
    members = sorted(entry.tags) if entry.kind.name == "TAG" else entry.cfg.get("task") or []
    return [
        leaf for member in ([members] if isinstance(members, str) else members) for leaf in _of(entries, name, member)
    ]


def _of(entries: dict[str, Any], group: str, member: str | dict[str, Any]) -> list[str]:
    if isinstance(member, str):
        return leaves(entries, member)
    if "group" not in member or member["group"] in entries:
        name = member.get("group", member.get("task"))
        return leaves(entries, name) if name in entries else [f"{group}::{name}"]
    inner = f"{group}::{member['group']}"
    listed = [member["task"]] if isinstance(member["task"], str) else member["task"]
    return [leaf for one in listed for leaf in _of(entries, inner, one)]


@pytest.mark.thorough
def test_files_and_tags_are_lm_evals(theirs: dict[str, Any]) -> None:
    tags = {name: tuple(sorted(entry.tags)) for name, entry in theirs.items() if entry.kind.name == "TAG"}
    assert index().tags == tags
    assert index().files == {name: entry.yaml_path for name, entry in theirs.items() if name not in tags}


@pytest.mark.parametrize("name", SEVEN)
def test_a_known_suite_has_lm_evals_tasks(theirs: dict[str, Any], name: str) -> None:
    group = find(name, ())
    assert isinstance(group, TaskGroup)
    assert [leaf.name for leaf in group.leaves] == leaves(theirs, name)
    assert len({leaf.name for leaf in group.leaves}) > 6


def test_what_lm_eval_aggregates_in_unusual_ways_is_found() -> None:
    """Tasks that stand in a group's file with an include, a metric that is a function, an aggregation that lm-eval ignores."""
    groups = {name: find(name, ()) for name in ("flan_held_in", "code2text", "lingoly")}
    assert all(isinstance(group, TaskGroup) for group in groups.values())
    flan, code, lingoly = (group for group in groups.values() if isinstance(group, TaskGroup))
    assert flan.leaves[0].name == "flan_held_in::anli_r1_flan::anli_r1_prompt-0"
    assert flan.leaves[0].file.config["doc_to_text"].startswith("{{premise}}")
    assert code.used is not None
    assert (code.used.metric, len(code.counted)) == ("smoothed_bleu_4", 6)
    assert [leaf.name for leaf in lingoly.leaves] == ["lingoly_context", "lingoly_nocontext"]


def test_what_each_suite_is_scored_by() -> None:
    used = {name: group.used for name in SEVEN if isinstance(group := find(name, ()), TaskGroup)}
    assert {name: one and (one.metric, one.filter, one.weight_by_size) for name, one in used.items()} == {
        "mmlu": ("acc", None, True),
        "glue": None,  # a tag
        "super-glue-lm-eval-v1": None,
        "mmlu_pro": ("exact_match", "custom-extract", True),
        "minerva_math": ("exact_match", None, True),
        "agieval": ("acc", None, True),
        "leaderboard": ("acc_norm", None, True),
    }
