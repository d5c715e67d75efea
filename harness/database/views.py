"""The database's views: questions that people ask of its tables, as SQL."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """A view for a question people ask."""

    name: str
    meaning: str
    sql: str


VIEWS = (
    View(
        "base_scores",
        "The base models' own scores (trials of zero steps), one per base model, task, split, comparability and n.",
        """SELECT base_model, base_revision, scores.task, scores.split, metric, comparability, n,
             higher_is_better, avg(value) AS value
           FROM scores JOIN trials USING (key) WHERE steps = 0 AND status = 'complete' GROUP BY ALL""",
    ),
    View(
        "base_parts",
        "The base models' own scores on the parts of groups, as base_scores.",
        """SELECT base_model, base_revision, whole, parent, parts.task, parts.split, metric, comparability, n, avg(value) AS value
           FROM parts JOIN trials USING (key) WHERE steps = 0 AND status = 'complete' GROUP BY ALL""",
    ),
    View(
        "forgetting",
        "Base score minus tuned score per trial and off-target task, positive = lost, losses sign-corrected; only where "
        "split and comparability agree. Of several base scores the one on as many items counts.",
        """SELECT s.key, s.task, s.split, s.metric, s.comparability, b.value AS base_value, s.value AS tuned_value,
             CASE WHEN s.higher_is_better THEN b.value - s.value ELSE s.value - b.value END AS forgetting,
             s.higher_is_better, s.low, s.high, s.position, b.n AS base_n, s.n AS tuned_n
           FROM scores s JOIN trials t ON t.key = s.key
           JOIN base_scores b ON b.base_model = t.base_model AND b.base_revision = t.base_revision AND b.task = s.task
             AND b.split = s.split AND b.metric = s.metric AND b.comparability = s.comparability
           WHERE NOT s.is_target AND t.steps > 0
           QUALIFY row_number() OVER (PARTITION BY s.key, s.task, s.metric ORDER BY (b.n = s.n) DESC, b.n DESC) = 1""",
    ),
    View(
        "worst_forgetting",
        "Per trial: the largest and the mean forgetting over its off-target suite. Points of accuracy, BLEU and nats do not "
        "add up: where the suite has metrics with a declared lowest and highest value, only these count, as shares of that "
        "distance (is_share); else those with the metric of its first task.",
        """SELECT key, max(size) AS worst, avg(size) AS mean, arg_max(task, size) AS worst_task, bool_or(is_share) AS is_share
           FROM (SELECT *, high - low IS NOT NULL AS is_share, forgetting / coalesce(high - low, 1) AS size,
               CASE WHEN is_share THEN '' ELSE metric END AS kind FROM forgetting
             QUALIFY kind = first_value(kind) OVER (PARTITION BY key ORDER BY is_share DESC, position))
           GROUP BY key""",
    ),
    View(
        "leaderboard",
        "Confirmed results only: per study, task, base model and comparability the finalists with mean over seeds, "
        "rank 1 = best. gain is towards better, whatever the metric's direction; seconds are of training, and they and money "
        "are what each run would have taken alone.",
        """WITH confirmed AS (
             SELECT m.study, m.task, m.base_model, t.base_revision, s.metric, s.comparability, s.higher_is_better,
               m.family, t.pipeline, any_value(t.params) AS params,
               avg(s.value) AS mean, count(*) AS seeds, stddev_samp(s.value) AS sd, sd / sqrt(seeds) AS stderr,
               avg(f.worst) AS forgetting, avg(c.solo_train_s) AS seconds, avg(c.peak_memory_bytes) AS peak_memory_bytes,
               avg(c.solo_money) AS money, max(s.n) AS items
             FROM members m JOIN trials t USING (key) JOIN scores s USING (key) JOIN costs c USING (key)
               LEFT JOIN worst_forgetting f USING (key)
             WHERE m.role = 'confirm' AND t.status = 'complete' AND s.is_target AND s.split = 'test'
             GROUP BY m.study, m.task, m.base_model, t.base_revision, s.metric, s.comparability, s.higher_is_better,
               m.family, t.pipeline)
           SELECT c.* EXCLUDE (base_revision), b.value AS base_value,
             CASE WHEN c.higher_is_better THEN mean - b.value ELSE b.value - mean END AS gain,
             rank() OVER (PARTITION BY study, c.task, c.base_model, c.metric, c.comparability
               ORDER BY CASE WHEN c.higher_is_better THEN -mean ELSE mean END) AS rank
           FROM confirmed c LEFT JOIN base_scores b ON b.base_model = c.base_model AND b.base_revision = c.base_revision
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
