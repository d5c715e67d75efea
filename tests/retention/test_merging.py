"""Retention by merging: matrices worked out by hand, then whole trials, then the way from base to tuned weights."""

from dataclasses import replace

import pytest
import torch

from harness.axes.contract import Situation
from harness.database.ingest import connect, ingest
from harness.errors import SpecError
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.plugins import load
from harness.records.codec import to_json
from harness.records.paths import Paths
from harness.records.results import read_result
from harness.records.trial import TrialStatus, result_from_json
from harness.retention._merging import dropped, elected, trimmed
from harness.space import Params
from harness.trial.group import Workspace, run_trial
from harness.trial.packs import alone_because
from tests.tiny import attached, config, save_llama, stage

ONE = torch.tensor([[4.0, -1.0, 0.5], [-3.0, 2.0, 0.1], [0.2, -0.3, 5.0]])
TWO = torch.tensor([[-2.0, -6.0, 1.0], [-1.0, 3.0, 0.4], [0.3, 0.2, -4.0]])


def test_trimming_by_hand():
    """A third of nine elements is three: 5, 4 and -3; -6, -4 and 3."""
    assert trimmed(ONE, 1 / 3).tolist() == [[4.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 5.0]]
    assert trimmed(TWO, 1 / 3).tolist() == [[0.0, -6.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, -4.0]]
    assert torch.equal(trimmed(ONE, 1.0), ONE)
    assert trimmed(ONE, 0.01).count_nonzero() == 1


def test_ties_by_hand():
    """At 4/9 they keep 5, 4, -3, 2 and -6, -4, 3, -2; where both have a value they differ in sign or are averaged."""
    kept = [trimmed(ONE, 4 / 9), trimmed(TWO, 4 / 9)]
    # top left: 4 and -2 sum to 2, so 4 alone; middle: (2 + 3) / 2; bottom right: 5 and -4 sum to 1, so 5 alone
    assert elected(kept, [1.0, 1.0]).tolist() == [[4.0, -6.0, 0.0], [-3.0, 2.5, 0.0], [0.0, 0.0, 5.0]]
    # with weights 1 and 3: 4 - 6 = -2, so -2 alone; (2 + 9) / 4; 5 - 12 = -7, so -4 alone
    assert elected(kept, [1.0, 3.0]).tolist() == [[-2.0, -6.0, 0.0], [-3.0, 2.75, 0.0], [0.0, 0.0, -4.0]]


def test_a_draw_between_signs_is_no_change():
    assert elected([torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0])], [1.0, 1.0]).tolist() == [0.0, 0.0]


def test_dare_by_hand():
    """Kept are the elements whose uniform number is below the density, doubled at a half."""
    numbers = torch.rand(3, 3, generator=torch.Generator().manual_seed(5))
    wanted = [
        [2 * v if u < 0.5 else 0.0 for v, u in zip(vs, us, strict=True)] for vs, us in zip(ONE, numbers, strict=True)
    ]
    found = dropped(ONE, 0.5, torch.Generator().manual_seed(5))
    assert found.tolist() == [[float(v) for v in row] for row in wanted]
    assert 0 < found.count_nonzero() < 9


def test_dare_keeps_the_expected_change():
    """10,000 ones kept with chance 0.2: a mean of 1 with a standard error of 2 / 100."""
    assert dropped(torch.ones(10_000), 0.2, torch.Generator().manual_seed(0)).mean().item() == pytest.approx(
        1, abs=0.08
    )


@pytest.fixture(scope="module")
def other(world, tmp_path_factory):
    """Another model tuned from the Llama: its weights plus 0.01."""
    folder = tmp_path_factory.mktemp("other")
    base = resolve_model(str(world.llama))
    model = load_model(base, {}, "cpu")
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.01)
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def merged_by(retention, world, other, **params):
    """The parameters of base, other, tuned and merged model, and the merging; the tuned one is the base less 0.02."""
    if "merge_with" in load("retention", retention).space:
        params["merge_with"] = f"{other}=0.5"
    one, _ = attached(world.llama, stage("full", retention=retention, **params), 2)
    model_of = lambda model: (load_model(resolve_model(model.name), {}, "cpu"), one.setup.tokenizer)  # noqa: E731
    one.setup = replace(one.setup, model_of=model_of)
    base = load_model(resolve_model(str(world.llama)), {}, "cpu")
    with torch.no_grad():
        for value in one.model.parameters():
            value.sub_(0.02)
    one.choices.retention.finish(one.model, one.setup)
    pairs = zip(base.parameters(), one.model.parameters(), strict=True)
    return torch.cat([(after - before).detach().flatten() for before, after in pairs]), one


@pytest.mark.parametrize(
    ("retention", "params", "wanted"),
    [
        ("fusion", {"own_weight": 0.7}, {0.7 * -0.02 + 0.5 * 0.01}),
        ("ties", {"merge_density": 1.0, "merge_scale": 2.0}, {2 * -0.02}),  # -0.02 outweighs half of 0.01
        ("ties", {"merge_density": 0.5}, {0.0, -0.02, 0.01}),  # none, the trained one, or only the other is kept
        ("dare", {"merge_density": 1.0}, {-0.02 + 0.005}),
        ("dare", {"merge_density": 0.5}, {0.0, -0.04, 0.01, -0.03}),
        ("magnitude_prune", {"merge_density": 0.25}, {0.0, -0.02}),
        ("interpolation", {"tuned_weight": 0.25}, {-0.005}),
    ],
)
def test_a_model_is_merged_with_its_base(retention, params, wanted, world, other):
    change, _ = merged_by(retention, world, other, **params)
    distances = (change[:, None] - torch.tensor(sorted(wanted))).abs()
    assert distances.min(1).values.max() < 1e-6
    assert set(distances.argmin(1).tolist()) == set(range(len(wanted)))
    if retention == "magnitude_prune":
        assert (change.abs() > 0.01).float().mean().item() == pytest.approx(0.25, abs=1e-3)


def test_models_of_another_shape_are_refused(world, tmp_path):
    with pytest.raises(SpecError, match=r"must name models with the base's weights, but those of .* have other names"):
        merged_by("ties", world, save_llama(tmp_path, width=32))


def test_merging_with_nothing_is_refused_when_planning():
    lora, none = load("methods", "lora"), load("methods", "none")
    for name in ("ties", "fusion"):
        plugin = load("retention", name)()
        assert "merge_with names none" in plugin.skip(
            Situation(beside={"method": lora}, params=Params({"merge_with": " "}))
        )
        assert plugin.skip(Situation(beside={"method": lora}, params=Params({"merge_with": "a"}))) is None
        assert plugin.skip(Situation()) is None
    for name in ("ties", "dare", "interpolation"):
        assert "trains none" in load("retention", name)().skip(Situation(beside={"method": none}))


@pytest.mark.parametrize("retention", ["ties", "dare", "fusion", "magnitude_prune"])
def test_a_trial(retention, tmp_path, world, other):
    params = {"merge_with": f"{other}=0.3"} if retention in ("ties", "fusion") else {}
    trial = config(world, stage("lora", retention=retention, **params), steps=3)
    assert "changes the trained weights" in alone_because(trial)
    result = run_trial(trial, Workspace(Paths(tmp_path), (world.tasks,), device="cpu"))
    assert result.status is TrialStatus.COMPLETE, result.reason
    assert result.path == ()


def test_the_way_from_base_to_tuned_weights_is_scored_in_one_trial(tmp_path, world):
    """At 0 it scores as the base, at 1 as the tuned model, in the middle as what the trial leaves."""
    place = Workspace(Paths(tmp_path), (world.tasks,), device="cpu")
    common = {"task": "text", "off_target": ("colour",), "steps": 6}
    made = {"learning_rate": 3e-3}
    walked = run_trial(config(world, stage("full", retention="interpolation", path_points=3, **made), **common), place)
    assert walked.status is TrialStatus.COMPLETE, walked.reason
    assert [point.tuned_weight for point in walked.path] == [0.0, 0.5, 1.0]
    assert [score.task for score in walked.path[0].scores] == ["text", "colour"]
    base = run_trial(config(world, stage("none"), **(common | {"steps": 0})), place)
    tuned = run_trial(config(world, stage("full", **made), **common), place)
    for point, known in zip(walked.path, (base, walked, tuned), strict=True):
        assert [s.value for s in point.scores] == pytest.approx([s.value for s in known.scores], abs=1e-5)
    assert base.target.value > tuned.target.value + 0.01
    assert read_result(place.paths.record(walked.config.key)) == walked


def test_records_from_before_there_were_paths_are_read(tmp_path, world):
    trial = config(world, stage("none"), steps=0)
    written = run_trial(trial, Workspace(Paths(tmp_path), (world.tasks,), device="cpu"))
    data = to_json(written)
    assert data.pop("path") == []
    assert result_from_json(data) == written


def test_the_way_is_in_the_database(tmp_path, world):
    place = Workspace(Paths(tmp_path), (world.tasks,), device="cpu")
    made = stage("full", retention="interpolation", path_points=2)
    walked = run_trial(config(world, made, steps=2, off_target=("text",)), place)
    run_trial(config(world, stage("none"), steps=0), place)
    ingest(place.paths)
    with connect(place.paths) as connection:
        found = connection.execute("SELECT tuned_weight, task, value FROM paths ORDER BY 1, 2").fetchall()
    wanted = [(point.tuned_weight, score.task, score.value) for point in walked.path for score in point.scores]
    assert found == sorted(wanted)
    assert len(found) == 4
