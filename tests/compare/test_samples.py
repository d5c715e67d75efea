"""What `lm_eval --log_samples` leaves is read: written here by lm-eval's own code, from answers that follow by hand."""

import math

import pytest

from harness.compare.samples import has_samples, read_samples
from harness.errors import SpecError


def row(number, **other):
    """A logged sample of multiple choice: log-likelihoods of two choices, the first of which is right."""
    likelihoods = [-2.0 * math.log(2), -8.0 * math.log(2)]
    usual = {
        "doc_id": number,
        "doc": {},
        "target": 0,
        "arguments": [("question", " yes"), ("question", " no")],
        "filtered_resps": [(own, False) for own in likelihoods],
        "resps": [[(own, False)] for own in likelihoods],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": f"hash {number}",
        "prompt_hash": "",
        "target_hash": "",
        "acc": 1.0,
    }
    return usual | other


def log(folder, task="arc", rows=(), metric="acc", kind="multiple_choice", **results):
    """Write samples and results as lm-eval does."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name_sanitized = "model"
    values = [own[metric] for own in rows]
    value = sum(values) / len(values) if isinstance(values[0], float) else None
    known = {
        "results": {task: {f"{metric},none": value}},
        "configs": {task: {"output_type": kind, "metric_list": [{"metric": metric}]}},
        "higher_is_better": {task: {metric: True}},
    }
    tracker.save_results_aggregated(known | results, {task: list(rows)})
    tracker.save_results_samples(task, list(rows))
    return folder


def test_multiple_choice(tmp_path):
    log(tmp_path, rows=[row(0), row(1, target=1, acc=0.0)])
    assert has_samples(tmp_path)
    arc = read_samples(tmp_path).skills["arc"]
    assert (arc.metric, arc.value, arc.guessing) == ("acc", 0.5, 0.5)
    first, second = arc.answers
    assert (first.item, first.prompt, first.right, first.given) == ("hash 0", "question", " yes", " yes")
    assert first.bits == pytest.approx(2 / 3)  # of three bytes; the space before them is no part of the answer
    assert second.right == " no"
    assert second.bits == pytest.approx(8 / 2)


@pytest.mark.parametrize(("target", "bits"), [("yes", 2 / 3), (0, 2 / 3), (1, None), ("maybe", None)])
def test_that_reading_of_the_target_is_taken_which_agrees_with_the_accuracy(tmp_path, target, bits):
    (answer,) = read_samples(log(tmp_path, rows=[row(0, target=target)])).skills["arc"].answers
    assert answer.bits == (None if bits is None else pytest.approx(bits))


def test_bits_per_byte(tmp_path):
    rows = [
        row(n, arguments=[("a text",)], filtered_resps=[-6.0], target="a text", bits_per_byte=(-6.0, 6), acc=0.0)
        for n in range(2)
    ]
    found = read_samples(
        log(
            tmp_path,
            "text",
            rows,
            "bits_per_byte",
            "loglikelihood_rolling",
            results={"text": {"bits_per_byte,none": 1 / math.log(2)}},
            higher_is_better={"text": {"bits_per_byte": False}},
        )
    ).skills["text"]
    assert not found.higher_is_better
    assert [own.value for own in found.answers] == [pytest.approx(1 / math.log(2))] * 2


def test_generated_answers(tmp_path):
    rows = [row(0, arguments=[("2+2=", {"until": []})], filtered_resps=["5"], target="4", exact_match=0.0)]
    (answer,) = read_samples(log(tmp_path, "sums", rows, "exact_match", "generate_until")).skills["sums"].answers
    assert (answer.given, answer.right, answer.bits, answer.value) == ("5", "4", None, 0.0)


def test_the_newest_run_counts_and_so_does_the_first_filter(tmp_path):
    log(tmp_path, rows=[row(0)])
    log(tmp_path, rows=[row(0, acc=0.0, target=1), row(0, filter="other")])
    arc = read_samples(tmp_path).skills["arc"]
    assert [answer.value for answer in arc.answers] == [0.0]


def test_a_limit_takes_the_first_in_the_order_of_hashes(tmp_path):
    log(tmp_path, rows=[row(2), row(1, target=1, acc=0.0), row(0)])
    arc = read_samples(tmp_path, limit=2).skills["arc"]
    assert ([answer.item for answer in arc.answers], arc.value) == (["hash 0", "hash 1"], 0.5)


def broken(folder):
    next(folder.rglob("samples_*")).write_text("{")


def without_results(folder):
    next(folder.rglob("results_*")).unlink()


def strange(folder):
    next(folder.rglob("samples_*")).write_text('{"filter": "none"}\n')


def empty(folder):
    next(folder.rglob("samples_*")).write_text("")


def of_two_models(folder):
    log(folder / "other", "gsm8k", rows=[row(0)])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (broken, "line 1, must be JSON"),
        (without_results, "must hold results_"),
        (strange, "must be what lm_eval --log_samples writes"),
        (empty, "must hold samples, but is empty"),
        (of_two_models, "the samples of one model"),
    ],
)
def test_files_that_cannot_be_read_are_one_sentence(tmp_path, harm, said):
    log(tmp_path, rows=[row(0)])
    harm(tmp_path)
    with pytest.raises(SpecError, match=said):
        read_samples(tmp_path)


def test_a_task_that_was_not_logged_is_one_sentence(tmp_path):
    log(tmp_path, rows=[row(0)])
    with pytest.raises(SpecError, match="samples of task mmlu, but holds those of arc"):
        read_samples(tmp_path, ("mmlu",))
