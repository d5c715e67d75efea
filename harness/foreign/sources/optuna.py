"""An Optuna study: a SQLite file or a journal, a row per trial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from harness.foreign.sources.base import Source

if TYPE_CHECKING:
    import optuna
    import pandas as pd


class Optuna(Source):
    """A storage of Optuna's, all its studies: what was tuned, on what, needs a mapping file."""

    summary = "An Optuna storage (SQLite or journal): parameters as params.NAME, user attributes as user_attrs.NAME."
    mapping = {
        "source": "Optuna",
        "task": "study",
        "status": {
            "column": "state",
            "map": {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "crashed", "RUNNING": "preempted"},
        },
        "costs": {"total_s": "seconds"},
    }

    def reads(self, path: Path) -> bool:
        """By its first bytes.

        Args:
            path: An existing file or folder.
        """
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(256)
        return start.startswith(b"SQLite format 3") or (b'"op_code"' in start and b'"worker_id"' in start)

    def table(self, path: Path) -> pd.DataFrame:
        """A row per trial; `value` is the objective, of several `values.0`, `values.1`.

        Args:
            path: A file that it reads.
        """
        import pandas as pd
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return pd.DataFrame([row for study in _studies(path) for row in _rows(study)])
        except (
            SQLAlchemyError,
            RuntimeError,
        ) as error:  # a database of something else, or of another version of Optuna
            raise ValueError(str(error)) from error


def _studies(path: Path) -> Iterator[optuna.Study]:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with path.open("rb") as file:
        is_sqlite = file.read(6) == b"SQLite"
    if is_sqlite:  # opened so that SQLite cannot write: to look at a file must not change it
        storage: Any = optuna.storages.RDBStorage(f"sqlite:///file:{quote(str(path.resolve()))}?mode=ro&uri=true")
    else:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    for summary in optuna.get_all_study_summaries(storage):
        yield optuna.load_study(study_name=summary.study_name, storage=storage)


def _rows(study: optuna.Study) -> Iterator[dict[str, Any]]:
    for trial in study.get_trials(deepcopy=False):
        values = trial.values or []
        scores = {"value": values[0]} if len(values) == 1 else {f"values.{i}": value for i, value in enumerate(values)}
        yield {
            "study": study.study_name,
            "number": trial.number,
            "state": trial.state.name,
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            **scores,
            **{f"params.{name}": value for name, value in trial.params.items()},
            **{f"user_attrs.{name}": value for name, value in trial.user_attrs.items()},
        }
