"""`harness compare` as a user types it."""

import json

import pytest
from click.testing import CliRunner

from harness.cli.main import main
from tests.compare.test_samples import log, row


def run(*arguments):
    done = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The same model twice, one that answers all wrong, and one that was asked something else."""
    root = tmp_path_factory.mktemp("logged")
    log(root / "base", rows=[row(n, target=1 if n % 4 == 0 else 0, acc=float(n % 4 != 0)) for n in range(200)])
    log(root / "worse", rows=[row(n, target=1, acc=0.0) for n in range(200)])
    log(root / "elsewhere", "mmlu", rows=[row(0)])
    log(root / "other_items", rows=[row(1000)])
    (root / "nothing").mkdir()
    return root


def test_a_model_against_itself_is_kept(logged):
    code, out, _ = run(logged / "base", logged / "base")
    assert (code, out.splitlines()[-1].partition(":")[0]) == (0, "kept")


def test_what_was_lost_has_a_code_a_page_and_json(logged, tmp_path):
    page = tmp_path / "pages" / "lost.html"
    code, out, _ = run(logged / "base", logged / "worse", "--json", "--output", page)
    assert code == 6
    assert json.loads(out)["models"][0]["skills"][0]["status"] == "lost"
    assert "lost 1 of the 1 skill" in page.read_text()


def test_too_few_items_have_a_code_of_their_own(logged):
    code, out, _ = run(logged / "base", logged / "base", "--limit", 8)
    assert code == 7
    assert "items each would tell for arc" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{base}"], 2, "compare must have a base and a tuned model, but got '{base}' alone"),
        (["tiny-1m", "tiny-1m"], 2, "got no task: add --tasks NAME"),
        (["tiny-1m", "tiny-1m", "--tasks", "tb_fact"], 3, "did you mean 'tb_facts'?"),
        (["{base}", "tiny-1m"], 2, "'{base}' holds samples and 'tiny-1m' does not"),
        (["tiny-1m", "{nothing}", "--tasks", "tb_facts"], 3, "a model folder must hold config.json"),
        (["{base}", "{elsewhere}"], 3, "must be scored on the same tasks"),
        (["{base}", "{other_items}"], 3, "must be scored on the same items"),
        (["{base}", "{base}", "--tasks", "mmlu"], 3, "must hold samples of task mmlu"),
        (["{base}", "{base}", "--output", "{nothing}"], 2, "is a directory"),
    ],
)
def test_a_wrong_input_is_one_sentence(logged, arguments, code, said):
    places = {place.name: str(place) for place in logged.iterdir()}
    found, _, err = run(*(argument.format(**places) for argument in arguments))
    assert found == code
    assert said.format(**places) in err
    assert len(err.strip().splitlines()) == 1
