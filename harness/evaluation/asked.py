"""What a task asks of a model, item by item, in the order of the outcomes of `evaluate`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from harness.models.chat import ChatTemplate
from harness.tasks.lm_eval_task import answer_of, gold_index, lm_eval_task
from harness.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An item as a model sees it."""

    prompt: str
    """Empty where a whole text is scored."""
    right: str
    """The right answer, or the text that is scored."""
    choices: int
    """How many; 0 where there are none."""


def asked(task: Task, split: str, limit: int | None, template: ChatTemplate | None) -> list[Asked]:
    """The items of a task that `Evaluator.evaluate` has scored; the arguments are the same.

    Args:
        task: No group.
        split: `validation` or `test`.
        limit: Only this many items.
        template: That the task's prompts were rendered in, see `template_for`.
    """
    built = lm_eval_task(task, split, limit, template)
    requests = defaultdict(list)
    for instance in built.instances:
        requests[instance.doc_id].append(instance)
    items = []
    for number, doc in built.doc_iterator():
        if not (own := requests[number]):
            continue
        text = str(own[0].args[0])
        if built.OUTPUT_TYPE == "multiple_choice":
            choices = [str(choice) for choice in built.doc_to_choice(doc)]
            items.append(Asked(prompt=text, right=choices[gold_index(built, doc)], choices=len(choices)))
        elif built.OUTPUT_TYPE == "loglikelihood_rolling":
            items.append(Asked(prompt="", right=text, choices=0))
        else:
            items.append(Asked(prompt=text, right=answer_of(built, doc), choices=0))
    return items
