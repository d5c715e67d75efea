"""The author's contract for a source: how a kind of file becomes a table with a row per run, or per run and time.

One file per kind; its stem is its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.axes.contract import Plugin

if TYPE_CHECKING:
    import pandas as pd


class Source(Plugin, ABC):
    """Reads one kind of file or folder."""

    mapping: ClassVar[Mapping[str, Any]] = {}
    """What its columns mean, as far as that is the same for all files of the kind; in the form of a mapping file."""

    @abstractmethod
    def reads(self, path: Path) -> bool:
        """Whether a file or folder is of this kind; a look at its name and at its first bytes, nothing more.

        Args:
            path: An existing file or folder.
        """

    @abstractmethod
    def table(self, path: Path) -> pd.DataFrame:
        """The runs.

        Args:
            path: A file or folder that it reads.

        Raises:
            OSError: When it cannot be read.
            ValueError: When it is not what it seemed.
        """
