"""Write every data file of the embedded tasks, byte for byte the same on every machine."""

import itertools
import json
from pathlib import Path

from harness.testbed import corpus, skills
from harness.testbed.seeding import rng_for, split_of
from harness.testbed.tuning_tasks import SPLIT_SIZES, Row, tuning_rows

STORIES = {"validation": 100, "test": 300}
SAMPLE_ROWS = 4000
ASKED = ("facts", "addition", "copy", "reverse")


def skill_rows(skill: str, split: str) -> list[Row]:
    """Return the held-out items of a pretrained skill, with distinct prompts.

    Args:
        skill: One of `ASKED`.
        split: `validation` or `test`.
    """
    if skill == "facts":
        items = skills.fact_items()
        rng_for("facts", "order").shuffle(items)
        first = SPLIT_SIZES["validation"]
        chosen = items[:first] if split == "validation" else items[first : first + SPLIT_SIZES["test"]]
        return [{"prompt": prompt, "answer": answer} for prompt, answer in chosen]
    rng = rng_for(skill, split)
    # A skill has fewer short items than the split wants, so the same prompt is drawn several times.
    rows: dict[str, Row] = {}
    while len(rows) < SPLIT_SIZES[split]:
        prompt, answer = skills.held_out_item(skill, rng)
        if split_of(prompt) == split:
            rows[prompt] = {"prompt": prompt, "answer": answer}
    return list(rows.values())


def story_rows(split: str) -> list[Row]:
    """Return held-out stories."""
    rng = rng_for("stories", split)
    stories = (skills.story_text(rng) for _ in itertools.count())
    return [{"text": text} for text in itertools.islice((s for s in stories if split_of(s) == split), STORIES[split])]


def all_rows() -> dict[str, list[Row]]:
    """Return the rows of every data file by file name."""
    files = {f"{task}_{split}": rows for task, splits in tuning_rows().items() for split, rows in splits.items()}
    for split in ("validation", "test"):
        for skill in ASKED:
            files[f"{skill}_{split}"] = skill_rows(skill, split)
        files[f"stories_{split}"] = story_rows(split)
    sample = itertools.islice(corpus.documents("sample"), SAMPLE_ROWS)
    files["corpus_sample"] = [{"text": text} for text in sample]
    return {f"{name}.jsonl": rows for name, rows in files.items()}


def write_data(folder: Path) -> None:
    """Write every data file into `folder`, one JSON object per line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in all_rows().items():
        lines = (json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
        # Bytes, since text mode would write other line ends on Windows and change the files' fingerprints.
        (folder / name).write_bytes("".join(lines).encode())
