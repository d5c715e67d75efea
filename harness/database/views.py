"""The database's views: questions that people ask of its tables, as SQL."""

from __future__ import annotations

from dataclasses import dataclass

from harness.analysis.forgetting import size_seen_sql, size_sql


@dataclass(frozen=True)
class View:
    """A view for a question people ask."""

    name: str
    meaning: str
    sql: str


def _one_unit(groups: str) -> str:
    """A QUALIFY condition: of a pipeline's skills those whose losses have one unit, as `analysis.forgetting.counted` has it."""
    kind = "CASE WHEN is_share THEN '' ELSE skill_metric END"
    return f"{kind} = first_value({kind}) OVER (PARTITION BY {groups} ORDER BY is_share DESC, position)"


_CONFIRMED = "study, task, base_model, family, pipeline, metric, comparability"
"""What the runs of a confirmed pipeline have in common."""

VIEWS = (
    View(
        "base_scores",
        "The base models' own scores (trials of zero steps), one per base model, task, split, comparability and n.",
        """SELECT base_model, base_revision, scores.task, scores.split, metric, comparability, n,
             higher_is_better, avg(value) AS value, avg(answer_bits) AS answer_bits
           FROM scores JOIN trials USING (key) WHERE steps = 0 AND status = 'complete' GROUP BY ALL""",
    ),
    View(
        "base_parts",
        "The base models' own scores on the parts of groups, as base_scores.",
        """SELECT base_model, base_revision, whole, parent, parts.task, parts.split, metric, comparability, n, avg(value) AS value
           FROM parts JOIN trials USING (key) WHERE steps = 0 AND status = 'complete' GROUP BY ALL""",
    ),
    View(
        "base_items",
        "The base models' own outcomes on items, each item once however often the base was scored: one row per base model, "
        "task, split, metric, comparability and item. Joining items to it counts each once. A pseudo-value is one of so many items "
        "(pseudo_n), and null where the base was scored on several numbers of them.",
        """WITH scored AS (SELECT key, task, split, metric, comparability, n FROM scores
             UNION SELECT key, task, split, metric, comparability, n FROM parts WHERE NOT is_group)
           SELECT base_model, base_revision, i.task, i.split, i.metric, comparability, doc_hash, avg(i.value) AS value,
             min(prediction) AS prediction, avg(answer_bits) AS answer_bits,
             CASE WHEN min(n) = max(n) THEN avg(pseudo_value) END AS pseudo_value, max(n) AS pseudo_n
           FROM items i JOIN trials t USING (key) JOIN scored s
             ON s.key = i.key AND s.task = i.task AND s.split = i.split AND s.metric = i.metric
           WHERE t.steps = 0 AND t.status = 'complete' GROUP BY ALL""",
    ),
    View(
        "forgetting",
        "Base score minus tuned score per trial and off-target task, positive = lost, losses sign-corrected; only where "
        "split and comparability agree. Of several base scores the one on as many items counts. size is what was lost as a "
        "share: of the distance between the metric's declared ends, or of the probability of a token (byte) where the metric is "
        "a perplexity or counts bits; it is in the metric's unit where that has neither (is_share is false). Where the score cannot "
        "fall, because the base stands at chance or at the floor of the scale, it is the share of the probability of each byte of "
        "the right answers, if these lost more.",
        f"""SELECT * EXCLUDE (own, seen, chance), seen.value AS size, seen.is_share AS is_share FROM (
             SELECT *, {size_seen_sql("own")} AS seen FROM (
             SELECT *, {size_sql("forgetting", "base_value", "tuned_value")} AS own FROM (
               SELECT s.key, s.task, s.split, s.metric, s.comparability, b.value AS base_value, s.value AS tuned_value,
                 CASE WHEN s.higher_is_better THEN b.value - s.value ELSE s.value - b.value END AS forgetting,
                 s.higher_is_better, s.low, s.high, s.position, b.n AS base_n, s.n AS tuned_n,
                 s.chance, s.answer_bits, b.answer_bits AS base_answer_bits
               FROM scores s JOIN trials t ON t.key = s.key
               JOIN base_scores b ON b.base_model = t.base_model AND b.base_revision = t.base_revision AND b.task = s.task
                 AND b.split = s.split AND b.metric = s.metric AND b.comparability = s.comparability
               WHERE NOT s.is_target AND t.steps > 0
               QUALIFY row_number() OVER (PARTITION BY s.key, s.task, s.metric ORDER BY (b.n = s.n) DESC, b.n DESC) = 1)))""",
    ),
    View(
        "worst_forgetting",
        "Per trial: what it lost of the skill that runs like it (the same pipeline, split, fidelity and suite) lost most of on "
        "average, so that one run's chance does not choose it; and its mean loss. Both are sizes: shares where the suite has "
        "any (is_share), else those with the metric of its first task.",
        f"""WITH sized AS (SELECT f.*, f.metric AS skill_metric, {{'pipeline': t.pipeline, 'split': t.split,
                 'fidelity': t.fidelity, 'limit': t.item_limit, 'suite': list(f.task) OVER (PARTITION BY f.key ORDER BY f.task
                 ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)}} AS runs
               FROM forgetting f JOIN trials t USING (key)),
             means AS (SELECT runs, task, skill_metric, avg(size) AS lost, bool_and(is_share) AS is_share,
               min(position) AS position FROM sized GROUP BY runs, task, skill_metric),
             counted AS (SELECT *, first_value(task) OVER (PARTITION BY runs ORDER BY lost DESC, position) AS worst_task
               FROM (SELECT * FROM means QUALIFY {_one_unit("runs")}))
           SELECT s.key, max(s.size) FILTER (s.task = c.worst_task) AS worst, avg(s.size) AS mean, c.worst_task,
             bool_and(c.is_share) AS is_share
           FROM sized s JOIN counted c USING (runs, task, skill_metric) GROUP BY s.key, c.worst_task""",
    ),
    View(
        "skill_forgetting",
        "Confirmed results only: per study, task, base model, pipeline and off-target skill, means over seeds of base and tuned "
        "score, of what was lost in the metric's unit (forgetting), and of that as a share (size; is_share).",
        f"""SELECT {_CONFIRMED}, skill, skill_metric, avg(base_value) AS base_value, avg(tuned_value) AS tuned_value,
             avg(forgetting) AS forgetting, avg(size) AS size, bool_and(is_share) AS is_share, count(*) AS seeds,
             min(position) AS position
           FROM (SELECT DISTINCT m.study, m.task, m.base_model, m.family, t.pipeline, s.metric, s.comparability,
               f.task AS skill, f.metric AS skill_metric, f.* EXCLUDE (task, metric, comparability)
             FROM members m JOIN trials t USING (key) JOIN scores s USING (key) JOIN forgetting f USING (key)
             WHERE m.role = 'confirm' AND t.status = 'complete' AND s.is_target AND s.split = 'test' AND f.split = 'test')
           GROUP BY {_CONFIRMED}, skill, skill_metric, low, high""",
    ),
    View(
        "leaderboard",
        "Confirmed results only: per study, task, base model and comparability the finalists with mean over seeds, "
        "rank 1 = best. gain is towards better, whatever the metric's direction; forgetting is the size of what was lost of the "
        "skill (worst_skill) that lost most on average over seeds; seconds are of training, and they and money are what each run "
        "would have taken alone.",
        f"""WITH worst AS (SELECT {_CONFIRMED}, size AS forgetting, skill AS worst_skill FROM (
               SELECT * FROM skill_forgetting QUALIFY {_one_unit(_CONFIRMED)})
             QUALIFY row_number() OVER (PARTITION BY {_CONFIRMED} ORDER BY size DESC, position) = 1),
           confirmed AS (
             SELECT m.study, m.task, m.base_model, t.base_revision, s.metric, s.comparability, s.higher_is_better,
               m.family, t.pipeline, any_value(t.params) AS params,
               avg(s.value) AS mean, count(*) AS seeds, stddev_samp(s.value) AS sd, sd / sqrt(seeds) AS stderr,
               avg(c.solo_train_s) AS seconds, avg(c.peak_memory_bytes) AS peak_memory_bytes,
               avg(c.solo_money) AS money, max(s.n) AS items
             FROM members m JOIN trials t USING (key) JOIN scores s USING (key) JOIN costs c USING (key)
             WHERE m.role = 'confirm' AND t.status = 'complete' AND s.is_target AND s.split = 'test'
             GROUP BY m.study, m.task, m.base_model, t.base_revision, s.metric, s.comparability, s.higher_is_better,
               m.family, t.pipeline)
           SELECT c.* EXCLUDE (base_revision), w.forgetting, w.worst_skill, b.value AS base_value,
             CASE WHEN c.higher_is_better THEN mean - b.value ELSE b.value - mean END AS gain,
             rank() OVER (PARTITION BY study, c.task, c.base_model, c.metric, c.comparability
               ORDER BY CASE WHEN c.higher_is_better THEN -mean ELSE mean END) AS rank
           FROM confirmed c LEFT JOIN worst w USING ({_CONFIRMED})
             LEFT JOIN base_scores b ON b.base_model = c.base_model AND b.base_revision = c.base_revision
             AND b.task = c.task AND b.split = 'test' AND b.metric = c.metric AND b.comparability = c.comparability
           QUALIFY row_number() OVER (PARTITION BY study, c.task, c.base_model, c.metric, c.comparability, family, pipeline
             ORDER BY (b.n = c.items) DESC NULLS LAST, b.n DESC) = 1""",
    ),
    View(
        "frontier",
        "Of the leaderboard: pipelines that no other one of the same study, task, base model and comparability equals "
        "or beats on mean score, forgetting and seconds with at least one of them better. Forgetting that was not measured "
        "counts as worst.",
        """WITH points AS (SELECT *, CASE WHEN higher_is_better THEN mean ELSE -mean END AS learning,
             coalesce(forgetting, 'infinity'::DOUBLE) AS lost FROM leaderboard)
           SELECT a.* EXCLUDE (learning, lost) FROM points a WHERE NOT EXISTS (SELECT 1 FROM points b
             WHERE a.study = b.study AND a.task = b.task AND a.base_model = b.base_model AND a.metric = b.metric
               AND a.comparability = b.comparability
               AND b.learning >= a.learning AND b.lost <= a.lost AND b.seconds <= a.seconds
               AND (b.learning > a.learning OR b.lost < a.lost OR b.seconds < a.seconds))""",
    ),
)
