"""How good the recommender's advice is: its regret on tasks it had not seen, beside simpler choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.recommend.backtest import Backtest, LeftOut
from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import ACCENT, MUTED, WIDTH_IN, draw, figure, rows_axis
from harness.report.markup import Column, Html, paragraph, table
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Recommendation(Section):
    """Regret by chooser from the leave-one-task-out backtest, and how often its intervals held."""

    summary = "Regret of the recommender on left-out tasks."
    title: ClassVar[str] = "How far to trust advice for a new task"
    order: ClassVar[int] = 75
    nothing: ClassVar[str] = (
        "The recommender has not been tested yet: that needs results on two tasks at least; then run harness backtest."
    )

    def render(self, study: StudyData) -> Html | None:
        """The verdict, a figure of regrets, the coverage."""
        if study.backtest is None or not study.backtest.tasks:
            return None
        return _verdict(study.backtest) + _regrets(study.backtest) + _coverage(study.backtest)


def _name(chooser: str) -> str:
    return chooser.replace("_", " ")


def _verdict(backtest: Backtest) -> Html:
    text = (
        f"Each of {words.count(len(backtest.tasks), 'task')} in the database was left out in turn: a pipeline was chosen "
        f"for it from the trials on the others, and compared with the best one known for it. The test "
        f"rests on {words.count(backtest.trials, 'trial')}. "
    )
    if backtest.beats_baselines:
        text += f"The surrogate {_name(backtest.surrogate)} chose better than every simple rule."
    else:
        text += (
            f"No learned surrogate chose better than the simple rules, so advice rests on {_name(backtest.surrogate)}."
        )
        if backtest.defaults_win:
            text += " The literature defaults had the least regret: try those first."
    return paragraph(text)


def _regrets(backtest: Backtest) -> Html:
    means = backtest.normalized_regret or backtest.regret
    if not means:
        return Html("")
    share = bool(backtest.normalized_regret)
    unit = "% of the possible gain" if share else "score units"
    choosers = sorted(means, key=lambda chooser: (means[chooser], chooser))
    title = "What each way of choosing would have lost on a new task"
    caption = "Small dots are left-out tasks, large dots their mean; 0 is the best pipeline known. " + (
        f"In use: {_name(backtest.surrogate)}."
    )
    factor = 100.0 if share else 1.0
    size = (WIDTH_IN, 0.8 + 0.34 * len(choosers))
    described = "; ".join(f"{_name(chooser)}: {factor * means[chooser]:.1f}" for chooser in choosers)

    def paint(fig: Figure) -> None:
        regrets = [_regret(task, share) for task in backtest.tasks]
        dots = {
            chooser: [factor * value for regret in regrets if (value := regret.get(chooser)) is not None]
            for chooser in choosers
        }
        _paint(fig, dots, {chooser: factor * means[chooser] for chooser in choosers}, backtest.surrogate)
        fig.axes[0].set_xlabel(f"regret ({unit})")

    return figure(draw("backtest", title, described, size, paint), title, caption, _table(backtest, choosers, share))


def _paint(fig: Figure, dots: Mapping[str, Sequence[float]], means: Mapping[str, float], used: str) -> None:
    import seaborn as sns

    axes = fig.subplots()
    pairs = [(value, row) for row, values in enumerate(dots.values()) for value in values]
    sns.stripplot(
        x=[value for value, _ in pairs], y=[row for _, row in pairs], orient="h", native_scale=True, jitter=False,
        ax=axes, color=MUTED, size=3.5, alpha=0.5,
    )  # fmt: skip
    for row, chooser in enumerate(dots):
        axes.plot([means[chooser]], [row], "o", color=ACCENT if chooser == used else MUTED, markersize=7, zorder=4)
    rows_axis(axes, [_name(chooser) for chooser in dots])
    # Regret starts at 0, and an axis that does not would make small differences look large.
    axes.set_xlim(left=min(0.0, *axes.get_xlim()))


def _regret(task: LeftOut, share: bool) -> Mapping[str, float | None]:
    """Regret on a task by chooser, as a share of what was to be gained or in units of the score."""
    return task.normalized if share else task.regret


def _table(backtest: Backtest, choosers: Sequence[str], share: bool) -> Html:
    """Regret by task, in what the mean may be taken of: shares of what was to be gained, or else one metric's units."""
    factor, means = (100.0, backtest.normalized_regret) if share else (1.0, backtest.regret)

    def shown(values: Mapping[str, float | None], chooser: str) -> str | None:
        value = values.get(chooser)
        return words.number(None if value is None else factor * value)

    columns = [Column("Left-out task"), Column("Base model"), Column("Pipelines", number=True)]
    columns += [Column(f"Regret of {_name(chooser)}", number=True) for chooser in choosers]
    rows = [
        (
            task.task,
            task.base_model,
            words.number(task.pipelines),
            *(shown(_regret(task, share), chooser) for chooser in choosers),
        )
        for task in backtest.tasks
    ]
    rows.append(("Mean", "all", None, *(shown(means, chooser) for chooser in choosers)))
    unit = "% of what was to be gained" if share else "units of the score"
    return table(f"Regret by left-out task, in {unit}", columns, rows)


def _coverage(backtest: Backtest) -> Html:
    columns = [Column("Prediction"), Column("Meant to hold", number=True), Column("Held", number=True)]
    columns += [Column("Cases", number=True)]
    rows = [
        (_name(target), f"{coverage.nominal:.0%}", f"{coverage.measured:.0%}", f"{coverage.n:,}")
        for target, coverage in backtest.coverage.items()
    ]
    if not rows:
        return Html("")
    shown = table("How often the recommender's intervals held on left-out tasks", columns, rows)
    if backtest.enough_tasks:
        return shown
    return shown + paragraph("There are too few tasks to calibrate the intervals for a new one.", kind="note")
