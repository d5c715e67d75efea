"""The race's tables: every figure beside its baseline, its goal, and how far the ways' scores are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

Line = dict[str, Any]
ITEMS = 200
REFERENCE = ("warm_tuned_pairs", "warm_tuned", "warm_default")
WARM_TUNED = ("warm_tuned", "warm_tuned_pairs", "warm_tuned_bf16", "warm_tuned_bf16_pairs")
ROWS: tuple[tuple[str, tuple[str, ...], dict[str, float]], ...] = (
    ("command lines, their defaults", ("cli_default",), {"stories260K": 20, "5m": 12}),
    ("command lines, tuned, one at a time", ("cli_tuned",), {}),
    ("command lines, tuned, two at a time", ("cli_tuned_pairs",), {"stories260K": 6.5, "5m": 6.5}),
    ("warm TRL process, its defaults", ("warm_default",), {}),
    ("warm TRL process, tuned, the fastest way", WARM_TUNED, {"stories260K": 2.5, "5m": 2.5}),
)
"""What is raced against, the ways that count as it (the fastest of them), and the goal by model."""


def printed(lines: Sequence[Line]) -> str:
    """Markdown of everything that was measured; of a way measured twice, the last counts."""
    last = {(line["model"], line["trials"], line["way"]): line for line in lines}
    parts = []
    for model, trials in dict.fromkeys((line["model"], line["trials"]) for line in lines):
        group = {way: line for (m, t, way), line in last.items() if (m, t) == (model, trials)}
        fewer = {way: line for (m, t, way), line in sorted(last.items()) if m == model and t < trials}
        parts.append(f"## {model}, {trials} trials\n\n{_ratios(model, trials, group, fewer)}\n\n{_ways(group)}")
    return "\n\n".join(parts)


def _ratios(model: str, trials: int, group: dict[str, Line], fewer: dict[str, Line]) -> str:
    """Baselines over figures. Command lines start anew for each trial, so a few of them stand for more, marked."""
    table = ["| against | baseline | figure | ratio | goal |", "|---|---|---|---|---|"]
    ours = group.get("harness") or group.get("harness_inline")
    for name, ways, goals in ROWS:
        found = [(group[way]["wall_s"], f"{way}") for way in ways if way in group]
        if not found:
            found = [
                (fewer[w]["wall_s"] * (n := trials / fewer[w]["trials"]), f"{n:g} x {w} of {fewer[w]['trials']}")
                for w in ways
                if w in fewer and "cli" in w
            ]
        if found and ours:
            table.append(_row(name, min(found), (ours["wall_s"], ours["way"]), goals.get(model)))
    peers = [group[way] for way in ("warm_confirmed", "warm_confirmed_bf16") if way in group]
    if peers and "harness_confirmed" in group:
        base, figure = min(peers, key=lambda line: line["wall_s"]), group["harness_confirmed"]
        name = "same sweep to the confirmed winner, full budget against early decisions"
        table.append(_row(name, (base["wall_s"], _winner(base)), (figure["wall_s"], _winner(figure)), 8))
    if line := group.get("batch2"):
        seconds = [line[side]["seconds"]["train"] for side in ("apart", "together")]
        table.append(_row("batch 2: our own loop, training", (seconds[0], "apart"), (seconds[1], "together"), 2.4))
    if line := group.get("scoring"):
        together = line["together_s"], f"K = {trials}; {line['said']}"
        table.append(_row("scoring adapters", (line["apart_s"], "simple_evaluate one by one"), together, 5))
    return "\n".join(table)


def _row(name: str, base: tuple[float, str], figure: tuple[float, str], goal: float | None) -> str:
    shown = (f"{seconds:.1f} s ({way})" for seconds, way in (base, figure))
    return f"| {name} | {' | '.join(shown)} | {base[0] / figure[0]:.2f} | {goal or ''} |"


def _winner(line: Line) -> str:
    rate, rank = line["winner"]
    return f"{line['way']}: {rate:g}, rank {rank}, test accuracy {line['confirmed']:.3f} of {line['seeds']} seeds"


def _ways(group: dict[str, Line]) -> str:
    """Every way with its cost and its distance from the reference, trial by trial."""
    reference = next((way for way in REFERENCE if way in group), None)
    head = "wall s | CPU s | largest process MB | load before | scored | mean accuracy | mean loss"
    table = [f"| way | {head} | accuracy apart | loss apart |", "|---" * 10 + "|"]
    for way, line in group.items():
        scored = [outcome for outcome in line.get("outcomes", ()) if outcome["accuracy"] is not None]
        cells = [f"{line['wall_s']:.1f}", f"{line['cpu_s']:.1f}", f"{line['largest_process_mb']}"]
        cells += [f"{line['load_before'][0]}", f"{len(scored)}"]
        cells += [_mean(scored, "accuracy", 3), _mean(scored, "loss", 4)]
        other = group[reference]["outcomes"] if reference and reference != way else []
        cells += [_apart(scored, other, "accuracy", 3), _apart(scored, other, "loss", 4)]
        table.append(f"| {way} | " + " | ".join(cells) + " |")
    noise = math.sqrt(0.25 / ITEMS)
    table.append(
        f"\nApart: mean absolute difference from {reference}, trial by trial; `warm_other_seed` is the same peer with "
        f"another seed, so its distance is the noise. One accuracy of {ITEMS} items near .5 has a standard error of {noise:.3f}."
    )
    return "\n".join(table)


def _mean(outcomes: Sequence[Line], key: str, digits: int) -> str:
    values = [o[key] for o in outcomes if o[key] is not None]
    return f"{mean(values):.{digits}f}" if values else ""


def _apart(outcomes: Sequence[Line], others: Sequence[Line], key: str, digits: int) -> str:
    known = {(o["rate"], o["rank"]): o[key] for o in others}
    pairs = [(o[key], known.get((o["rate"], o["rank"]))) for o in outcomes]
    gaps = [abs(one - other) for one, other in pairs if one is not None and other is not None]
    return f"{mean(gaps):.{digits}f}" if gaps else ""
