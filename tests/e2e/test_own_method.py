"""A user writes a method, tries it, and changes it: the study says that its records are of the earlier code."""

import json

import pytest
import yaml

from harness.files import read_lines
from harness.records.paths import Paths
from harness.records.results import find_result
from tests.e2e.conftest import Project

METHOD = '''
"""LoRA with another scale."""

from harness.methods.lora import Lora as _Lora


class HalfLora(_Lora):
    summary = "LoRA scaled by the root of its rank"

    def options(self, model, setup):
        return {"use_rslora": True}
'''
STUDY = {
    "name": "own",
    "question": "Does my method do?",
    "base_models": ["tiny-1m"],
    "tasks": ["tb_sort"],
    "families": {"own": {"method": "half_lora"}},
    "budget": {"trials": 1, "steps": 2},
    "search": {"sampler": "random", "limit": 4},
}


@pytest.mark.thorough
def test_a_method_that_was_edited_is_named_before_its_records_are_used(tmp_path):
    project, file = Project(tmp_path), tmp_path / "plugins" / "methods" / "half_lora.py"
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "own.yaml").write_text(yaml.safe_dump(STUDY))
    file.parent.mkdir(parents=True)

    def searched(*options):
        done = project.harness("search", "own", "--quiet", "--json", "--runner-option=idle_s=1", *options)
        paths = Paths(tmp_path / "results")
        [member] = read_lines(paths.study("own").members)
        effective = find_result(paths, member["key"]).provenance.effective
        [adapter] = effective.stages[0].adapter.values()
        return json.loads(done.stdout), done.stderr, adapter["use_rslora"]

    file.write_text(METHOD)
    summary, _, scaled = searched()
    assert (summary["ran"], summary["notes"], scaled) == (1, [], True)
    file.write_text(METHOD.replace("True", "False"))
    summary, said, scaled = searched()
    assert (summary["ran"], scaled) == (0, True)
    assert summary["notes"][0].startswith("the code of methods/half_lora is not what it was")
    assert summary["notes"][0] in said
    summary, _, scaled = searched("--refresh")
    assert (summary["ran"], summary["notes"], scaled) == (1, [], False)
