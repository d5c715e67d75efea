"""A stage's setup for a curation, on a tiny random model."""

import dataclasses

import pytest

from tests.tiny import ROWS, attached, stage


@pytest.fixture
def setup_for(world):
    """Builds (curation, setup, notes) with some parameters and some hooks replaced."""

    def build(name, rows=ROWS, hooks=None, **params):
        one, notes = attached(world.llama, stage(), steps=100, rows=rows)
        from harness.plugins import load
        from harness.space import Params, defaults

        plugin = load("curation", name)
        known = Params({**one.setup.params, **defaults(plugin.space)}, **params)
        return plugin(), dataclasses.replace(one.setup, params=known, **hooks or {}), notes

    return build


@pytest.fixture
def examples_of():
    """Rows as supervised fine-tuning shows them."""

    def build(setup, rows=ROWS):
        from harness.plugins import load

        return load("objectives", "sft")().examples(rows, setup)

    return build
