"""A comparison as one offline page: the answer, a table of skills, and the items that lost most with both answers."""

from __future__ import annotations

from harness.analysis.retained import Status
from harness.compare.answers import Answer
from harness.compare.judgement import Compared, Comparison, Verdict
from harness.compare.said import COLUMNS, LONGEST, WORST, cells, headline
from harness.report import words
from harness.report.markup import Column, Html, details, join, listing, paragraph, table, tag
from harness.report.page import document


def render(comparison: Comparison) -> str:
    """The whole page; the same comparison gives the same bytes.

    Args:
        comparison: What was found.
    """
    title = f"What became of {comparison.base}"
    header = tag("header", paragraph("Comparison of finished models", kind="kicker"), tag("h1", title))
    answers = join(
        paragraph(headline(comparison, model), kind="lead" if model.status is Status.KEPT else "lead warning")
        for model in comparison.models
    )
    notes = listing(comparison.notes) if comparison.notes else Html("")
    main = tag(
        "main",
        answers,
        notes,
        join(_model(comparison, number, model) for number, model in enumerate(comparison.models, 1)),
    )
    return document(title, tag("body", header, main, _footer(comparison)))


def _model(comparison: Comparison, number: int, model: Compared) -> Html:
    columns = [
        Column(name.capitalize(), number=name in ("base", "tuned", "items", "bits per byte")) for name in COLUMNS
    ]
    caption = f"Skills of {comparison.base}, and what {model.name} made of them"
    summary = table(caption, columns, ((skill.pair.name, *cells(skill)) for skill in model.skills))
    worst = join(_worst(model, skill) for skill in model.skills)
    return tag("section", tag("h2", model.name), summary, worst, id=f"model-{number}")


def _worst(model: Compared, skill: Verdict) -> Html:
    items = skill.worst(WORST)
    if not items:
        return Html("")
    flips = skill.flips
    changed = f" ({flips.lost:.0f} right to wrong, {flips.gained:.0f} wrong to right)" if flips else ""
    shown = join(_item(model, number, *item) for number, item in enumerate(items, 1))
    return details(f"{skill.pair.name}: the {words.count(len(items), 'item')} that lost most{changed}", shown)


def _item(model: Compared, number: int, base: Answer, tuned: Answer) -> Html:
    rows = (("base", *_given(base)), (model.name, *_given(tuned)))
    columns = [Column("Model"), Column("Answer"), Column("Score", number=True), Column("Bits per byte", number=True)]
    return join(
        (
            tag("h3", f"Item {number}"),
            tag("pre", _cut(base.prompt), tabindex="0", role="region", aria_label=f"Prompt of item {number}")
            if base.prompt
            else Html(""),
            paragraph("Right: ", tag("code", _cut(base.right))),
            table(f"Answers to item {number}", columns, rows),
        )
    )


def _given(answer: Answer) -> tuple[str | None, ...]:
    bits = None if answer.bits is None else f"{answer.bits:.3f}"
    return None if answer.given is None else _cut(answer.given), words.number(answer.value), bits


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"... {text[-LONGEST:]}"


def _footer(comparison: Comparison) -> Html:
    margin = words.number(100 * comparison.smallest)
    return tag(
        "footer",
        paragraph(
            "Lost: the loss is beyond the noise of items, corrected over all skills and models; among equally able models at "
            "most one comparison in twenty says so of any skill. Kept: a loss of "
            f"{margin} points, or of {margin} % of a byte's probability, would have been seen. A score that stands at chance or "
            "at the floor of its scale cannot fall: there the skill is judged by how unlikely the right answers have become, "
            "and has no headroom where that is unknown. Intervals are 95%, over items: the models themselves are fixed."
        ),
    )
