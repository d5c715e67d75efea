"""Rewards, reward models, and what is learned from them: rules by hand, what is left, RLHF from end to end."""

import math
import string
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import yaml

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.models.chat import in_template, template_of
from harness.models.facts import ModelFacts
from harness.models.tokens import encoder
from harness.objectives._reinforcement import _RewardFunction
from harness.objectives._rewards import last_token_scores, rewards_for
from harness.plugins import load
from harness.records.paths import Paths
from harness.records.trial import TrialStatus
from harness.space import Params
from harness.tasks.facts import TaskFacts
from harness.tasks.file import ALLOW_CODE, file_sha256
from harness.tasks.metadata import TaskMetadata
from harness.tasks.task import find_task
from harness.tasks.training_rows import Row
from harness.training import checkpoint
from harness.training.choices import refusal
from harness.training.trl import run_trainer
from harness.trial.group import Workspace, run_trial
from harness.trial.packs import alone_because
from tests.tiny import ROWS, attached, config, logits, stage, train
from tests.training.pairs import ROWS as PAIRS


def worth(reward, target, *answers):
    rows = [Row(prompt="q", completion=target, doc={"key": 3})]
    setup = SimpleNamespace(task_metadata=TaskMetadata(reward=reward), left={})
    return rewards_for(setup, rows)(rows * len(answers), answers)


def test_rules_by_hand():
    assert worth("exact_match", " blue", "blue", " blue\n", "Blue", "blue.") == [1, 1, 0, 0]
    assert worth("numeric", " 1,234.5", "so 2 and 1234.5", "1234.6", "none", "1.2345e3") == [1, 0, 0, 1]
    assert worth("numeric", "-4", "-4", "4", "4 - 8 is -4.0") == [1, 0, 1]
    pattern = {"regex": r"#### (\w+)"}
    assert worth(pattern, "so #### yes", "#### yes", "thus #### no", "yes") == [1, 0, 0]
    assert worth(pattern, " yes", "#### yes", "yes") == [1, 0]
    assert worth({"regex": r"[ab]+"}, "abba", "is abba here", "ab") == [1, 0]
    assert worth(lambda doc, answer: doc["key"] * len(answer), "", "ab", "") == [6, 0]


def test_rewards_that_cannot_be_are_refused():
    with pytest.raises(SpecError, match=r"must be one of exact_match, numeric, .*, but is 'exactmatch': correct"):
        worth("exactmatch", "a", "a")
    with pytest.raises(SpecError, match=r"rewards need metadata.reward in the task, or one earlier stage"):
        worth(None, "a", "a")
    with pytest.raises(SpecError, match=r"must be a regular expression, but is '\('"):
        worth({"regex": "("}, "a", "a")
    with pytest.raises(SpecError, match=r"'numeric' must reward a row's own answer, but does not reward 'four'"):
        worth("numeric", "four", "4")


@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_what_has_no_prompt_or_reward_is_refused_when_planning(objective):
    plugin = load("objectives", objective)()

    def rewarded_by(reward, left=()):
        return Situation(task=TaskFacts("generate_until", metadata=TaskMetadata(reward=reward)), left=left)

    assert "rewards need metadata.reward" in plugin.skip(rewarded_by(None))
    assert plugin.skip(rewarded_by(None, ("reward_model",))) is None
    assert plugin.skip(rewarded_by("numeric")) is None
    assert "must be one of" in plugin.skip(rewarded_by("numerical"))
    assert "plain texts" in plugin.skip(Situation(task=TaskFacts("loglikelihood_rolling")))
    assert "reads padding" in plugin.skip(Situation(model=ModelFacts(model_type="rwkv")))
    prefix, lora = load("methods", "prefix_tuning"), load("methods", "lora")
    assert "virtual tokens" in plugin.skip(Situation(beside={"method": prefix}))
    assert plugin.skip(Situation(beside={"method": lora})) is None
    assert plugin.skip(Situation()) is None


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_method_that_acts_at_the_output_layer_is_refused_where_trl_passes_by_it(name):
    sampled, plain = load("objectives", name), load("objectives", "dpo")
    dropout, tokens = load("methods", "high_dropout")(), load("methods", "trainable_tokens")()
    assert "passes by" in dropout.skip(Situation(beside={"objective": sampled}))
    assert dropout.skip(Situation(beside={"objective": plain})) is None
    for tied, refused in ((True, True), (False, False)):
        facts = ModelFacts(ties_embeddings=tied)
        reason = tokens.skip(Situation(model=facts, beside={"objective": sampled}))
        assert (reason is not None) == refused
        assert tokens.skip(Situation(model=facts, beside={"objective": plain})) is None


def test_a_tasks_own_reward_runs_only_when_its_code_is_allowed(world, tmp_path, monkeypatch):
    raw = yaml.safe_load((world.tasks / "echo.yaml").read_text())
    raw["dataset_kwargs"]["data_files"] = {
        k: str(world.tasks / v) for k, v in raw["dataset_kwargs"]["data_files"].items()
    }
    text = yaml.safe_dump(raw | {"task": "own"}).replace("version: 1", "version: 1\n  reward: !function judge.length")
    (tmp_path / "own.yaml").write_text(text)
    (tmp_path / "judge.py").write_text("def length(doc, answer):\n    return len(answer) + doc['number']\n")
    with pytest.raises(SpecError, match=r"must not run code unless you allow it, but !function .*judge\.py"):
        find_task("own", (tmp_path,))
    hashes = [file_sha256(tmp_path / name) for name in ("own.yaml", "judge.py")]
    monkeypatch.setenv(ALLOW_CODE, ",".join(hashes))
    task = find_task("own", (tmp_path,))
    assert task.metadata.reward({"number": 2}, "abc") == 5
    (tmp_path / "judge.py").write_text("def length(doc, answer):\n    return 0\n")
    monkeypatch.setenv(ALLOW_CODE, ",".join([hashes[0], file_sha256(tmp_path / "judge.py")]))
    assert find_task("own", (tmp_path,)).ref.fingerprint != task.ref.fingerprint


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_reward_model_is_left_as_a_classifier_and_its_loss_is_of_pairs(method, family, tmp_path, world):
    """The loss of a batch, from the rewards that plain transformers gives the same texts."""
    from transformers import AutoModelForSequenceClassification

    made = stage(method, "reward_model", learning_rate=1e-4, head_learning_rate=0.1)
    one, _ = attached(getattr(world, family), made, 6, PAIRS)
    (curve,) = train(one)
    assert curve[0] == pytest.approx(math.log(2), abs=1e-6)
    objective = one.choices.objective
    objective.leave(one.plain(), one.setup, tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = one.trainer.data_collator([{"pair": number} for number in range(4)])
    with torch.no_grad():
        chosen, rejected = classifier(**batch).logits[:, 0].chunk(2)
        one.trainer.model.eval()
        ours = one.trainer.compute_loss(one.trainer.model, batch).item()
        texts = [ids[: mask.sum()].tolist() for ids, mask in zip(*batch.values(), strict=True)]
        scores = last_token_scores(classifier, texts, "cpu")
    assert (chosen - rejected).abs().min() > 1e-4
    assert ours == pytest.approx(sum(math.log1p(math.exp(-d)) for d in (chosen - rejected).tolist()) / 4, abs=1e-5)
    torch.testing.assert_close(scores, torch.cat([chosen, rejected]), atol=1e-5, rtol=0)


def test_a_reward_model_learns_to_tell_answers_apart(world):
    made = stage("full", "reward_model", learning_rate=1e-3, head_learning_rate=1e-2, batch_size=8)
    one, notes = attached(world.llama, made, 40, PAIRS)
    (curve,) = train(one)
    assert sum(curve[-4:]) / 4 < 0.3
    assert one.settings.observed["ranked_right_last"] > 0.9
    assert any("ranks right" in note for note in notes)


def test_a_reward_model_must_be_followed_and_merged(world):
    plugin, lora = load("objectives", "reward_model")(), load("methods", "lora")
    assert "no sequence classifier for a rwkv" in plugin.skip(Situation(model=ModelFacts(model_type="rwkv")))
    assert "cannot be merged" in plugin.skip(Situation(beside={"method": load("methods", "prefix_tuning")}))
    assert plugin.skip(Situation(model=ModelFacts(model_type="llama"), beside={"method": lora})) is None
    alone = config(world, stage("lora", "reward_model", learning_rate=1e-4), task="manners")
    assert "another stage must follow it" in refusal(alone.pipeline, Situation())


def letters(doc, answer):
    """Share of small letters, of which a random model writes a tenth."""
    return sum(character in string.ascii_lowercase for character in answer) / max(1, len(answer))


SAMPLED = {"batch_size": 4, "generations": 4, "completion_tokens": 8}


@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_what_is_rewarded_becomes_likelier(objective, world):
    sizes = {"batch_size": 4, "generations": 16, "completion_tokens": 2, "kl_weight": 0.0}
    made = stage("full", objective, learning_rate=7e-4, schedule="constant", **sizes)
    one, notes = attached(world.llama, made, 40, ROWS, task_metadata=TaskMetadata(reward=letters))
    train(one)
    assert one.failure is None
    # means of 256 answers of two letters at first and at last: .08 before, with a standard error below .03
    assert one.settings.observed["reward_last"] > one.settings.observed["reward_first"] + 0.1
    assert any(note.startswith("mean reward: 0.") for note in notes)
    assert 40 * 64 <= one.watch.tally.supervised_tokens <= 40 * 64 * 2


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_what_is_kept_is_what_was_trained(objective, method, world):
    """TRL replaces the model's `forward`, which a copy would share with the original."""
    made = stage(method, objective, learning_rate=3e-4, kl_weight=0.1, **SAMPLED)
    one, _ = attached(world.llama, made, 3, ROWS, task_metadata=TaskMetadata(reward=letters))
    before = logits(one.model)
    trains = {name for name, p in one.model.named_parameters() if p.requires_grad}
    train(one)
    assert {name for name, p in one.model.named_parameters() if p.requires_grad} == trains
    wanted = logits(one.model)
    assert not torch.allclose(wanted, before, atol=1e-4)
    plain = one.plain()
    with torch.no_grad():
        for parameter in one.model.parameters():
            if parameter.requires_grad and method != "full":
                parameter.zero_()
    torch.testing.assert_close(logits(plain), wanted, atol=1e-4, rtol=0)


def test_an_answer_is_rewarded_up_to_where_it_ends_when_it_is_scored():
    rows = [Row(prompt="q", completion=" blue", end="<|im_end|>"), Row(prompt="q", completion=" blue")]
    seen = []

    def rewards(asked, answers):
        seen.extend(answers)
        return [0.0] * len(answers)

    function = _RewardFunction(rewards=rewards, rows=rows, generations=2, stops=("\n", "Q:"))
    function([" blue\nred", " blue<|im_end|>\n", " blueQ: red\n", " blue<|im_end|>"], [0, 0, 1, 1])
    assert seen == [" blue", " blue", " blue", " blue<|im_end|>"]


def test_a_trial_tells_its_objective_where_its_tasks_answers_end(world, tmp_path, monkeypatch):
    from harness.objectives import _reinforcement

    told = []
    monkeypatch.setattr(
        _reinforcement, "rewards_for", lambda setup, rows: told.append(setup.stops) or (lambda *_: [0.0] * 16)
    )
    raw = yaml.safe_load((world.tasks / "echo.yaml").read_text())
    raw["dataset_kwargs"]["data_files"] = {
        k: str(world.tasks / v) for k, v in raw["dataset_kwargs"]["data_files"].items()
    }
    raw["generation_kwargs"] = dict(raw.get("generation_kwargs", {})) | {"until": ["!", "\n"]}
    raw["metadata"] = dict(raw["metadata"]) | {"reward": "exact_match"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw | {"task": "own"}))
    there = replace(world, tasks=tmp_path)
    trial = config(there, stage("lora", "grpo", **SAMPLED), task="own", steps=1, fractions=(1.0,))
    result = run_trial(trial, Workspace(Paths(tmp_path / "results"), (tmp_path,), device="cpu"))
    assert result.status == "complete", result.reason
    assert told == [("!", "\n")]


@pytest.mark.parametrize("objective", ["rloo", "grpo"])
@pytest.mark.parametrize("kind", ["chatml", "llama_2", "llama_3", "gemma"])
def test_in_a_chat_answers_end_where_the_template_ends_them(kind, objective, tmp_path):
    """Prompts are the tokens that are scored, with one beginning; the end of a turn ends an answer, as well as what does anyway."""
    from tests.templates import save_instruct

    base = in_template(resolve_model(str(save_instruct(tmp_path / "model", kind))))
    template = template_of(base)
    asked = [{"role": "user", "content": word} for word in ("red", "blue")]
    rows = [
        Row(prompt=template.prompted([one])[0], completion=one["content"], end=template.end_after([one]))
        for one in asked
    ]
    made = stage("lora", objective, learning_rate=1e-3, **SAMPLED)
    one, _ = attached(base.folder, made, 1, rows, task_metadata=TaskMetadata(reward=letters))
    given = one.trainer._tokenize_prompts([row.prompt for row in rows])[0]
    known = encoder(load_tokenizer(base))
    scored = known.pairs([(row.prompt, row.completion) for row in rows], generates=True)
    assert [tuple(ids) for ids in given] == [prompt for prompt, _ in scored]
    inner = getattr(one.model, "get_base_model", lambda: one.model)()
    assert inner.generation_config.eos_token_id == load_model(base, {}, "cpu").generation_config.eos_token_id
    ends = load_tokenizer(base).convert_ids_to_tokens(one.trainer.eos_token_ids)
    assert rows[0].end in ends or rows[0].end.strip() == load_tokenizer(base).eos_token
    train(one)
    assert one.failure is None


def test_the_same_seed_samples_the_same_answers(world):
    def curve():
        made = stage("lora", "grpo", learning_rate=1e-3, **SAMPLED)
        one, _ = attached(world.llama, made, 4, ROWS, task_metadata=TaskMetadata(reward=letters))
        train(one)
        return [entry["reward"] for entry in one.trainer.state.log_history if "reward" in entry]

    assert curve() == curve()


def test_groups_without_signal_are_told(world):
    made = stage("lora", "grpo", learning_rate=1e-3, **SAMPLED)
    one, notes = attached(world.llama, made, 2, ROWS, task_metadata=TaskMetadata(reward=lambda doc, answer: 1.0))
    train(one)
    assert one.settings.observed["groups_without_signal"] == 1.0
    assert "all answers of a group were worth the same in 100% of 8 groups, so rewards taught nothing" in notes[-1]


def test_what_cannot_be_sampled_is_refused(world):
    def made(method="lora", rows=ROWS, **params):
        one = stage(method, "rloo", learning_rate=1e-3, **SAMPLED | params)
        attached(world.llama, one, 2, rows, task_metadata=TaskMetadata(reward=letters))

    with pytest.raises(SpecError, match=r"completion_tokens must be below .* context \(96\), but got 96: lower it"):
        made(completion_tokens=96)
    with pytest.raises(SpecError, match="every row must have a prompt to be answered, but one has none"):
        made(rows=[*ROWS, Row(completion="text")])
    with pytest.raises(SpecError, match="its method adds virtual tokens: use another method"):
        made("prefix_tuning")


def test_how_answers_are_drawn_and_weighed_is_what_was_asked_for(world):
    asked = {"generations": 2, "completion_tokens": 5, "sampling_temperature": 0.7}
    weighed = {"loss_type": "dr_grpo", "scale_rewards": "none"}
    made = stage("lora", "grpo", learning_rate=1e-3, **asked, **weighed)
    trainer = attached(world.llama, made, 1, ROWS, task_metadata=TaskMetadata(reward=letters))[0].trainer
    assert (trainer.num_generations, trainer.max_completion_length, trainer.temperature) == (2, 5, 0.7)
    assert (trainer.loss_type, trainer.scale_rewards) == ("dr_grpo", "none")
    assert (trainer.args.per_device_train_batch_size, trainer.num_iterations) == (8, 1)


def test_long_prompts_lose_their_beginning(world):
    rows = [Row(prompt="x" * 200 + ":", completion=" a")]
    made = stage("lora", "rloo", learning_rate=1e-3, **SAMPLED)
    one, _ = attached(world.llama, made, 1, rows, task_metadata=TaskMetadata(reward=letters))
    ids, *_ = one.trainer._tokenize_prompts([rows[0].prompt])
    assert [len(each) for each in ids] == [96 - 8]
    train(one)
    assert one.failure is None


def test_rlhf_in_three_stages(tmp_path, world):
    """Imitation, then a reward model that leaves the policy alone, then answers that it rewards."""
    stages = (
        stage("lora", "sft", share=0.25),
        stage("full", "reward_model", learning_rate=1e-3, share=0.5),
        stage("lora", "rloo", learning_rate=2e-3, share=0.25, **SAMPLED),
    )
    trial = config(world, *stages, steps=16, task="manners", fractions=(0.5, 1.0))
    assert "stages" in alone_because(trial)
    result = run_trial(trial, Workspace(Paths(tmp_path), (world.tasks,), device="cpu", keep_model=True))
    assert result.status is TrialStatus.COMPLETE, result.reason
    sft, judge, policy = result.provenance.effective.stages
    assert (sft.steps, judge.steps, policy.steps) == (4, 8, 4)
    assert judge.observed["ranked_right_last"] >= 0.5
    assert {"reward_first", "reward_last", "groups_without_signal"} <= set(policy.observed)
    assert any("mean reward" in note for note in result.notes)
    assert [point.fraction for point in result.curve] == [1.0]


def test_a_reward_model_of_an_earlier_stage_judges_as_it_was_trained(tmp_path, world):
    one, _ = attached(world.llama, stage("full", "reward_model", learning_rate=1e-3, batch_size=8), 20, PAIRS)
    train(one)
    one.choices.objective.leave(one.plain(), one.setup, tmp_path)
    setup = replace(one.setup, left={"reward_model": tmp_path})
    given = rewards_for(setup, PAIRS)
    chosen, rejected = (given(PAIRS, [getattr(row, name) for row in PAIRS]) for name in ("completion", "rejected"))
    batch = one.trainer.data_collator([{"pair": number} for number in range(len(PAIRS))])
    with torch.no_grad():
        wanted = one.trainer.model.eval()(**batch)
    # examples leave out pairs that a short stage does not reach, so compare as sets
    found = sorted([*chosen, *rejected])
    assert [min(abs(w - f) for f in found) for w in wanted.tolist()] == pytest.approx([0] * len(wanted), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_continuation_samples_what_the_whole_would_have(family, tmp_path, world):
    made = stage("lora", "rloo", learning_rate=1e-3, **SAMPLED)

    def until(step):
        one, _ = attached(getattr(world, family), made, 4, ROWS, task_metadata=TaskMetadata(reward=letters))
        return replace(one, watch=replace(one.watch, stop_at=step))

    def rewards(one):
        return [entry["reward"] for entry in one.trainer.state.log_history if "reward" in entry]

    whole, first, second = until(4), until(2), until(4)
    train(whole)
    train(first)
    checkpoint.save(
        tmp_path / "rung",
        first,
        checkpoint.Progress(key="", step=2, curve=(), losses=(0.0, 0), train_seconds=0.0, tokens=0, total_s=0.0),
    )
    checkpoint.restore(tmp_path / "rung", second)
    run_trainer(second, lambda: None, tmp_path / "rung")
    assert rewards(whole)[:2] == rewards(first)
    assert rewards(whole) == rewards(second)


@pytest.mark.parametrize("objective", ["rloo", "grpo"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_divergence_is_from_the_stages_own_base(method, objective, world):
    """Nothing before the first step, something after it."""
    made = stage(method, objective, learning_rate=7e-4, kl_weight=0.1, warmup_share=0.0, **SAMPLED)
    one, _ = attached(world.llama, made, 4, ROWS, task_metadata=TaskMetadata(reward=letters))
    train(one)
    found = [entry["kl"] for entry in one.trainer.state.log_history if "kl" in entry]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert abs(found[-1]) > 1e-5


def test_the_head_follows_the_schedule_at_its_own_rate(world):
    """Cosine over three steps: Adam's first step moves each weight by the rate, the later ones by at most 3/4 and 1/4."""
    made = {"schedule": "cosine", "warmup_share": 0.0, "learning_rate": 1e-6, "head_learning_rate": 0.01}
    one, _ = attached(world.llama, stage("full", "reward_model", **made), 3, PAIRS)
    heads = []
    one.choices.method.after_step = lambda model, step: heads.append(
        one.choices.objective._head.weight.detach().clone()
    )
    train(one)
    heads.append(one.choices.objective._head.weight.detach())
    moves = [float((b - a).abs().max()) for a, b in pairwise(heads)]
    assert float(heads[-1].abs().max()) <= 0.01 * (1 + 3 / 4 + 1 / 4) * 1.05
    assert max(moves) == pytest.approx(0.01 * 3 / 4, rel=0.3)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_replay_of_plain_texts_is_refused_where_prompts_are_answered(name):
    replay = load("retention", "replay")()
    beside = {"objective": load("objectives", name)}
    assert "plain texts" in replay.skip(Situation(beside=beside, params=Params({"replay_from": ""})))
    assert replay.skip(Situation(beside=beside, params=Params({"replay_from": "low"}))) is None


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("axis", "choice", "named"), [("curation", "mixing", "pools"), ("retention", "replay", "replay_from")]
)
def test_plain_texts_beside_prompts_are_refused(objective, axis, choice, named):
    """A text without a prompt asks for no answer; of a task with prompts nothing is said."""
    kinds = {"tales": "loglikelihood_rolling", "sums": "generate_until"}
    known = TaskFacts(output_type="generate_until", metadata=TaskMetadata(reward="exact_match"))

    def skip(task):
        beside = {axis: load(axis, choice)}
        situation = Situation(
            task=known,
            beside=beside,
            params=Params({named: task}),
            facts_of=lambda name: TaskFacts(output_type=kinds[name]),
        )
        return load("objectives", objective)().skip(situation)

    assert skip("tales") == "its objective answers prompts, but the rows of tales are plain texts"
    assert skip("sums") is None
