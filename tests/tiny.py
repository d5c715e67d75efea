"""The smallest things that a trial can run on: random two-layer models, a tokenizer of bytes, tasks of a few rows."""

import json
from dataclasses import replace
from functools import cache

import yaml

from harness.axes.contract import StageSetup
from harness.cost.meter import Meter, Tally
from harness.models.base_model import context_length, load_model, load_tokenizer, resolve_model
from harness.records.trial import Evaluation, Pipeline, Stage, TrialConfig
from harness.space import Params, defaults
from harness.study.family import stage_space
from harness.tasks.task import find_task
from harness.tasks.training_rows import Row
from harness.training.alone import Alone
from harness.training.choices import choices
from harness.training.learner import Watch
from harness.training.prepare import make_learner
from harness.training.reach import Weights, reach
from harness.training.together import Together
from harness.training.trl import run_trainer

WORDS = ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]


def save_tokenizer(folder, **special):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", "<pad>", *alphabet])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokens = {"eos_token": "<end>", "bos_token": "<end>", "pad_token": "<pad>"} | special
    PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=96, **tokens).save_pretrained(folder)


def save_llama(folder, width=64, dropout=0.0, **settings):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    usual = {
        "vocab_size": 258,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
        "tie_word_embeddings": True,
        "attention_dropout": dropout,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    LlamaForCausalLM(LlamaConfig(**usual | settings)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_gpt2(folder, dropout=0.0, **settings):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    usual = {
        "vocab_size": 258,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 96,
        "attn_pdrop": dropout,
        "embd_pdrop": dropout,
        "resid_pdrop": dropout,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    GPT2LMHeadModel(GPT2Config(**usual | settings)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


USUAL = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
"""Sizes of a tiny model of any architecture, by the names that configs have for them."""


def kind_config(model_type, **settings):
    """The config of a tiny model of an architecture; of `USUAL` it has what its class declares."""
    from transformers import AutoConfig

    kind = type(AutoConfig.for_model(model_type))
    declared = {name for each in kind.__mro__ for name in vars(each).get("__annotations__", {})} | set(
        kind.attribute_map
    )
    return AutoConfig.for_model(model_type, **{name: USUAL[name] for name in declared & set(USUAL)} | settings)


def save_kind(folder, model_type, **settings):
    """A tiny random model of an architecture, by its `model_type`, see `kind_config`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(kind_config(model_type, **settings)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tasks(folder):
    """`colour` and `manners` (with preferences) are multiple choice, `echo` generation, `text` perplexity.

    24 training rows each, 8 and 8 others.
    """
    rows = [{"word": WORDS[i % 8], "number": i, "answer": (i * 7) % 2} for i in range(40)]
    rows = [row | {"text": f"Number {row['number']} is {row['word']}."} for row in rows]
    splits = {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}
    for name, part in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {name: f"{name}.jsonl" for name in splits}},
        "training_split": "train",
        "validation_split": "validation",
        "test_split": "test",
    }
    tasks = {
        "colour": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{number}} {{word}}:",
            "doc_to_choice": ["no", "yes"],
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
        "echo": {
            "output_type": "generate_until",
            "doc_to_text": "Say {{word}}:",
            "doc_to_target": "{{word}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
        "text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
        },
    }
    for name, own in tasks.items():
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name} | common | own | {"metadata": {"version": 1}})
        )
    save_preferences(folder, common)
    return folder


def save_preferences(folder, common):
    rows = [
        {"ask": f"{i} {WORDS[i % 8]}", "kind": "yes, " * (i % 3) + "please", "rude": "no" * (1 + i % 4)}
        for i in range(40)
    ]
    splits = {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}
    for name, part in splits.items():
        (folder / f"manners_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    own = {
        "task": "manners",
        "dataset_kwargs": {"data_files": {name: f"manners_{name}.jsonl" for name in splits}},
        "output_type": "multiple_choice",
        "doc_to_text": "{{ask}}:",
        "doc_to_choice": "{{[kind, rude]}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1, "preference": {"chosen": "kind", "rejected": "rude"}},
    }
    (folder / "manners.yaml").write_text(yaml.safe_dump(common | own))


@cache
def task_ref(name, folder):
    return find_task(name, (folder,)).ref


def stage(method="full", objective="sft", retention="none", curation="as_is", share=1.0, data=None, **params):
    space = stage_space({"method": method, "objective": objective, "retention": retention, "curation": curation})
    known = defaults(space) | {"batch_size": 4, "learning_rate": 1e-3} | params
    return Stage(
        method=method,
        objective=objective,
        retention=retention,
        curation=curation,
        params=dict(sorted(known.items())),
        data=data,
        share=share,
    )


def config(world, *stages, steps=6, task="colour", off_target=(), fractions=(0.5, 1.0), model=None, **changes):
    """A trial in a `World`."""
    base = resolve_model(str(model or world.llama))
    refs = tuple(task_ref(name, world.tasks) for name in off_target)
    return TrialConfig(
        pipeline=Pipeline(base.ref, stages or (stage(),)),
        task=task_ref(task, world.tasks),
        steps=steps,
        evaluation=Evaluation(off_target=refs, fractions=fractions),
        **changes,
    )


ROWS = [Row(prompt=f"{number} {word}:", completion=f" {word[::-1]}") for number, word in enumerate(WORDS)]


def attached(
    folder, one_stage, steps=2, rows=ROWS, corpus=(), seed=1, dtype=None, generates=False, tasks=None, **facts
):
    """A stage on a model folder, ready to train, and its notes; `facts` are further ones of its setup."""
    base = resolve_model(str(folder))
    chosen = choices(one_stage)
    model = load_model(base, chosen.method.load_options(chosen.params, "cpu"), "cpu")
    model = model if dtype is None else model.to(dtype)
    notes: list[str] = []
    reserved = chosen.method.reserved(chosen.params)
    length = context_length(model.config, chosen.params.integer("max_length"), reserved)
    setup = StageSetup(
        params=Params(chosen.params, max_length=length),
        tokenizer=load_tokenizer(base),
        device="cpu",
        seed=seed,
        steps=steps,
        load_base=lambda: load_model(base, {}, "cpu"),
        corpus=lambda: list(corpus),
        generates=generates,
        packed=chosen.objective.packs,
        note=notes.append,
        rows=lambda: list(rows),
        rows_of=lambda task: list((tasks or {})[task.pinned]),
        **facts,
    )
    from transformers import set_seed

    set_seed(seed)
    weights = Weights.of(model)
    model = chosen.method.attach(model, setup)
    share, of_experts = reach(chosen.method, model, weights)
    model = model if dtype is None else model.to(dtype)
    watch = Watch(stop_at=steps, score_at=frozenset(), meter=Meter("cpu"), tally=Tally())
    learner = make_learner(model, list(rows), chosen, setup, watch, {})
    learner.settings = replace(learner.settings, reach=share, reach_experts=of_experts)
    return learner, notes


def trained(folder, one_stage, steps=2, rows=ROWS, corpus=(), **options):
    ready, _ = attached(folder, one_stage, steps, rows, corpus, **options)
    train(ready)
    return ready


def train(*learners):
    """Train learners to their ends, together if there are several; each one's losses, step by step.

    A single learner with a trainer of TRL's is trained by that.
    """
    if learners[0].trainer is not None:
        (one,) = learners
        run_trainer(one, lambda: None)
        return [[entry["loss"] for entry in one.trainer.state.log_history if "loss" in entry]]
    curves = {id(one): [] for one in learners}
    while going := [one for one in learners if one.active]:
        session = Together(going) if len(going) > 1 else Alone(going[0])
        while all(one.active for one in going):
            before = {id(one): one.losses.total for one in going}
            session.advance(1)
            for one in going:
                curves[id(one)].append(one.losses.total - before[id(one)])
        session.close()
    return [curves[id(one)] for one in learners]


def logits(model):
    import torch

    ids = torch.arange(5, 45).reshape(2, 20)
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
