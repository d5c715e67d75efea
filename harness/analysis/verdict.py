"""The verdict: which family is better, over fresh seeds and fresh test items, with all claims of a study at one level.

    base = {"base": items_of_base[None, :]}                      # (1, items); turn losses round first: more is better
    [verdict] = judge([Question(scores={"lora": lora, "full": full} | base, base="base", scale=Scale(low=0, high=1),
                                smallest=0.02)])
    verdict.use          # the family to use, or None: the leader beats every other one, the base included
    verdict.leader       # highest mean, whatever that is worth
    verdict.level        # the leader's, with an interval that allows for its having been picked
    verdict.gain         # the leader's over the base, likewise
    verdict.against["full"].word   # worse, equivalent, within noise or untestable: of a family against the leader
    verdict.over_base["lora"].word # better, worse, equivalent, within noise or untestable: of a family against the base
    across(questions)    # the one question over all tasks: who leads on average; it has by far the most power

Finished models without seeds (two checkpoints, say) are `fixed`: then the question is about these very models, and items
alone are a sample. Claims, all together at `alpha` over the study:

- *Use A* where A beats every other one in a two-sided t test. The largest p counts and nothing is corrected within the task,
  which is an intersection-union test (Berger 1982, Technometrics 24:295-300; for the best of several, Gutmann and Maymin 1987,
  Annals of Statistics 15:456-461); over tasks Holm's correction (1979, Scandinavian Journal of Statistics 6:65-70).
- *B is worse than the leader* by the studentized range of as many means as lie between the two (Newman 1939, Biometrika
  31:20-30), from the last family upwards, until one claim fails. A task of which all claims stand leaves its share to others.
- *B is better than the base* by the studentized range of all means (Tukey 1953).
- *Equivalent* by two one-sided tests (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15:657-680), with
  Holm's correction over the study.
- A level's interval is Wilson's (1927, JASA 22:209-212) where the metric has two ends, with as many items as give the error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.comparison import Question, Table
from harness.analysis.noise import Sample, errors_of, sample_of, seed_noise
from harness.analysis.statistics import Interval, holm
from harness.records.scale import Scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

ALPHA = 0.05
"""Share of studies without any difference in which something is claimed."""
ALONE = "there is nothing to compare it with"
ONE_ITEM = "one test item cannot say how others would be answered"
ONE_SEED = "no family has two runs, so nothing is known of other seeds"
UNKNOWN = "a score is missing or not finite"
DIFFERENT = "its runs were scored on different items"


class Word(StrEnum):
    """What can be said of a comparison."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    """They differ by less than the smallest difference that matters."""
    NOISE = "within noise"
    UNTESTABLE = "untestable"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A family against another one."""

    word: Word
    difference: Interval
    """Without ends where the data cannot give any; `n` counts items."""
    p: float | None = None
    """Of no difference, two-sided, before any correction; None where untestable."""
    reason: str = ""
    """Why it is untestable."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What can be said of one task."""

    leader: str | None
    """The family with the highest mean; None where no score is comparable."""
    word: Word
    """Of the leader against all others: better, equivalent to each, within noise, or untestable."""
    reason: str = ""
    """Why it is untestable."""
    p: float | None = None
    """That the leader is not the best, corrected over tasks."""
    levels: Mapping[str, Interval] = field(default_factory=dict)
    """Of every family; the leader's allows for its having been picked."""
    gains: Mapping[str, Interval] = field(default_factory=dict)
    """Of every other family over the base; the leader's allows for its having been picked."""
    against: Mapping[str, Contrast] = field(default_factory=dict)
    """Every other family against the leader; differences are the leader's score minus the family's."""
    over_base: Mapping[str, Contrast] = field(default_factory=dict)
    """Every other family against the base; differences are the family's score minus the base's."""

    @property
    def use(self) -> str | None:
        """The one family that was shown to be best, the base included; None where none was."""
        return self.leader if self.word is Word.BETTER else None

    @property
    def level(self) -> Interval | None:
        """The leader's mean score."""
        return self.levels.get(self.leader or "")

    @property
    def gain(self) -> Interval | None:
        """The leader's gain over the base; None where there is no base, or where it leads."""
        return self.gains.get(self.leader or "")

    @property
    def equals(self) -> tuple[str, ...]:
        """The leader, and those that were not shown to be worse."""
        rest = (name for name, contrast in self.against.items() if contrast.word is not Word.WORSE)
        return () if self.leader is None else (self.leader, *rest)


@dataclass(frozen=True, kw_only=True)
class Across:
    """The one question over all tasks: which family has the highest mean?"""

    leader: str
    word: Word
    """Better where the leader beats every other family, within noise, or untestable."""
    tasks: int
    others: tuple[str, ...] = ()
    """Every other family that all of the tasks have, the base included; of no other is anything said."""
    lead: Interval | None = None
    """Over the next best family, mean over tasks, in units of the scales' widths."""
    gain: Interval | None = None
    """Over the base, likewise; the lower end allows for the leader's having been picked."""
    p: float | None = None


def untestable(reason: str, leader: str | None = None) -> Verdict:
    """The verdict where there is no `Question` to ask, for example since a metric has no item outcomes."""
    return Verdict(leader=leader, word=Word.UNTESTABLE, reason=reason)


def judge(questions: Sequence[Question], alpha: float = ALPHA) -> tuple[Verdict, ...]:
    """The verdict on every task of a study.

    Args:
        questions: One for each task (and base model); they are judged together.
        alpha: Share of studies without any difference in which anything may be claimed.

    Returns:
        In the order of `questions`.
    """
    tables = _tables(questions)
    asked = [table for table in tables if isinstance(table, Table) and len(table.sample.names) > 1]
    uses = holm([table.p_use() for table in asked])
    share, worse = _shown_worse(asked, alpha)
    equal = _shown_equivalent(asked, alpha)
    claims = {
        id(table): _Claims(p_use=p, use=p <= alpha, worse=names, share=share, equivalent=pairs)
        for table, p, names, pairs in zip(asked, uses, worse, equal, strict=True)
    }
    return tuple(
        table if isinstance(table, Verdict) else _verdict(table, claims.get(id(table), _Claims())) for table in tables
    )


def across(questions: Sequence[Question], alpha: float = ALPHA) -> Across | None:
    """Which family has the highest mean over several tasks of one base model.

    Args:
        questions: Its tasks; those whose metric has two ends count, by shares of their distance, and the families that
            all of these have.
        alpha: Level of the claim, which is one of its own beside those of `judge`.

    Returns:
        None where fewer than two tasks can be asked together, or fewer than two families.
    """
    tables = [table for table in _tables(_alike(questions)) if isinstance(table, Table)]
    if len(tables) < 2 or len(tables[0].sample.names) < 2:
        return None
    count = len(tables)
    square = np.sum([table.errors.pairs for table in tables], axis=0) / count**2
    scatter = np.sum([table.errors.pairs**2 / table.errors.pair_degrees for table in tables], axis=0) / count**4
    degrees = np.where(scatter > 0, square**2 / np.where(scatter > 0, scatter, 1.0), 1.0)
    joint = replace(
        tables[0],
        sample=replace(tables[0].sample, means=np.mean([table.sample.means for table in tables], axis=0)),
        errors=replace(tables[0].errors, pairs=square, pair_degrees=degrees),
    )
    p, rest = joint.p_use(), joint.order[:-1]
    word = Word.UNTESTABLE if not square[joint.top, rest].all() else Word.BETTER if p <= alpha else Word.NOISE
    return Across(
        leader=joint.leader,
        word=word,
        tasks=count,
        others=tuple(joint.sample.names[i] for i in reversed(rest)),
        lead=joint.difference(joint.top, rest[-1]),
        gain=None if joint.base in (None, joint.top) else joint.gain(joint.top),
        p=p,
    )


def _alike(questions: Sequence[Question]) -> list[Question]:
    """Tasks with the same families, in units of their scales."""
    bounded = [question for question in questions if question.scale.width]
    shared = [n for n in (bounded[0].scores if bounded else ()) if all(n in other.scores for other in bounded)]
    return [
        replace(
            question,
            scores={name: np.asarray(question.scores[name]) / (question.scale.width or 1.0) for name in shared},
            scale=Scale(low=0.0, high=1.0),
        )
        for question in bounded
    ]


@dataclass(frozen=True, kw_only=True)
class _Claims:
    """What may be claimed of one task."""

    p_use: float | None = None
    use: bool = False
    worse: frozenset[str] = frozenset()
    """Than the leader."""
    share: float = 0.0
    """The task's share of alpha."""
    equivalent: frozenset[tuple[int, int]] = frozenset()


def _tables(questions: Sequence[Question]) -> list[Table | Verdict]:
    """Each question with its errors, or the verdict that it cannot be asked."""
    samples: list[Sample | Verdict] = []
    for question in questions:
        scores = {name: np.atleast_2d(np.asarray(own, dtype=float)) for name, own in question.scores.items()}
        gap = _gap(scores)
        fixed = question.fixed | {question.base or ""}
        samples.append(untestable(gap, _highest(scores)) if gap else sample_of(scores, fixed))
    noise = iter(seed_noise([sample for sample in samples if isinstance(sample, Sample)]))
    tables: list[Table | Verdict] = []
    for question, sample in zip(questions, samples, strict=True):
        if isinstance(sample, Verdict):
            tables.append(sample)
        elif (own := next(noise)) is None:
            tables.append(untestable(ONE_SEED, sample.names[int(sample.means.argmax())]))
        else:
            tables.append(Table(question=question, sample=sample, errors=errors_of(sample, own)))
    return tables


def _gap(scores: Mapping[str, Numbers]) -> str:
    if not scores:
        return ALONE
    if not all(np.isfinite(own).all() for own in scores.values()):
        return UNKNOWN
    if len({own.shape[1] for own in scores.values()}) > 1:
        return DIFFERENT
    return ONE_ITEM if next(iter(scores.values())).shape[1] < 2 else ""


def _highest(scores: Mapping[str, Numbers]) -> str | None:
    means = {name: own.mean() for name, own in scores.items() if own.size and np.isfinite(own).all()}
    return max(means, key=lambda name: means[name], default=None)


def _shown_worse(tables: Sequence[Table], alpha: float) -> tuple[float, list[frozenset[str]]]:
    """The families of every task that are worse than its leader, and the share of alpha that each open task has."""
    claims = [_range_tests(table, alpha) for table in tables]
    still_open = len(tables)
    while True:
        share = alpha / max(still_open, 1)
        shown = [frozenset(name for name, p in own if p <= share) for own in claims]
        now = sum(len(own) < len(table.order) - 1 for own, table in zip(shown, tables, strict=True))
        if now >= still_open:
            return share, shown
        still_open = now


def _range_tests(table: Table, alpha: float) -> list[tuple[str, float]]:
    """Families from the last upwards with the p of being worse than the leader, as far as a claim is possible."""
    found: list[tuple[str, float]] = []
    p = 0.0
    for place, other in enumerate(table.order[:-1]):
        # a claim stands only where those about all families below stand, too
        p = max(p, table.p_range(table.top, other, len(table.order) - place, alpha))
        if p > alpha:
            break
        found.append((table.sample.names[other], p))
    return found


def _shown_equivalent(tables: Sequence[Table], alpha: float) -> list[frozenset[tuple[int, int]]]:
    """Pairs with the leader and with the base that differ by less than matters, corrected over the study."""
    pairs = [
        (number, i, j)
        for number, table in enumerate(tables)
        for i, j in dict.fromkeys(
            (min(i, j), max(i, j)) for i in (table.top, table.base) for j in table.order if i is not None and i != j
        )
    ]
    adjusted = holm([tables[number].p_equivalent(i, j) for number, i, j in pairs])
    found: list[set[tuple[int, int]]] = [set() for _ in tables]
    for (number, i, j), p in zip(pairs, adjusted, strict=True):
        if p <= alpha:
            found[number] |= {(i, j), (j, i)}
    return [frozenset(own) for own in found]


def _verdict(table: Table, claims: _Claims) -> Verdict:
    names, order, base = table.sample.names, table.order[::-1], table.base
    against = {names[i]: _against(table, claims, i) for i in order[1:]}
    others = [] if base is None else [i for i in order if i != base]
    word, reason = _word(claims, against)
    return Verdict(
        leader=table.leader,
        word=word,
        reason=reason,
        p=claims.p_use,
        levels={names[i]: table.level(i) for i in order},
        gains={names[i]: table.gain(i) for i in others},
        against=against,
        over_base={names[i]: _over_base(table, claims, i, against) for i in others},
    )


def _against(table: Table, claims: _Claims, i: int) -> Contrast:
    """A family against the leader, as the leader minus the family."""
    worse = claims.use or table.sample.names[i] in claims.worse
    return _contrast(table, claims, (table.top, i), Word.WORSE if worse else None)


def _over_base(table: Table, claims: _Claims, i: int, against: Mapping[str, Contrast]) -> Contrast:
    """A family against the base, as the family minus the base; where one of them leads, as `against` says."""
    names, base = table.sample.names, table.base or 0
    if table.top in (i, base):
        shown = against[names[base if i == table.top else i]].word is Word.WORSE
    else:
        shown = table.p_range(i, base, len(names), claims.share) <= claims.share
    better = Word.BETTER if table.lead(i, base) > 0 else Word.WORSE
    return _contrast(table, claims, (i, base), better if shown else None)


def _contrast(table: Table, claims: _Claims, pair: tuple[int, int], shown: Word | None) -> Contrast:
    i, j = pair
    reason = table.unvaried(i, j)
    word = Word.EQUIVALENT if pair in claims.equivalent else Word.NOISE
    return Contrast(
        word=Word.UNTESTABLE if reason else shown or word,
        difference=table.difference(i, j, table.candidates if i == table.top else 1),
        p=None if reason else table.p(i, j),
        reason=reason,
    )


def _word(claims: _Claims, against: Mapping[str, Contrast]) -> tuple[Word, str]:
    words = {contrast.word for contrast in against.values()}
    if not against:
        return Word.UNTESTABLE, ALONE
    if words == {Word.UNTESTABLE}:
        return Word.UNTESTABLE, next(iter(against.values())).reason
    if claims.use:
        return Word.BETTER, ""
    return (Word.EQUIVALENT if words == {Word.EQUIVALENT} else Word.NOISE), ""
