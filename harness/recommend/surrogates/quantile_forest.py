"""A forest that keeps all of a leaf's targets, so that it knows not only the mean but the spread of what is alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.recommend.surrogates.base import Prediction, Surrogate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TREES = 100


class QuantileForest(Surrogate):
    """Extremely randomised trees; the quantiles weigh each seen target by how often it shares a leaf with the candidate."""

    summary = "Extremely randomised trees with quantiles from their leaves."
    paper = "Meinshausen 2006, JMLR 7:983-999; Geurts, Ernst and Wehenkel 2006, Machine Learning 63:3-42"

    def fit(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Grow the trees on everything, without bootstrap.

        Args:
            x: Features, shape (n, columns).
            y: Targets, shape (n,).
        """
        import numpy as np
        from sklearn import config_context
        from sklearn.tree import ExtraTreeRegressor

        # Trees are grown one by one: for some tens of rows ExtraTreesRegressor spends three quarters of its time on
        # cloning them. Leaves of one row overfit, but with fewer than 20 rows larger ones leave no structure.
        rows, leaf, random = np.asarray(x, dtype=np.float32), 1 if len(y) < 20 else 2, np.random.RandomState(self.seed)
        tree = ExtraTreeRegressor(min_samples_leaf=leaf, max_features=0.5, random_state=random)
        with config_context(skip_parameter_validation=True):
            self._trees = [tree.fit(rows, y, check_input=False).tree_ for _ in range(TREES)]
        # Sorted once, so that a quantile is the first target whose cumulated weight reaches the level.
        order = y.argsort(kind="stable")
        self._sorted, self._leaves = y[order], [tree.apply(rows)[order] for tree in self._trees]

    def predict(self, x: NDArray[np.float64], coverage: float) -> Prediction:
        """Weighted mean and quantiles of the targets seen, equation (6) of Meinshausen.

        Args:
            x: Features, shape (m, columns).
            coverage: Of the interval, in (0, 1).
        """
        import numpy as np

        weights = np.zeros((len(x), len(self._sorted)))
        rows = np.asarray(x, dtype=np.float32)
        for tree, ours in zip(self._trees, self._leaves, strict=True):
            shared = tree.apply(rows)[:, None] == ours[None, :]
            weights += shared / shared.sum(axis=1, keepdims=True)
        cumulative = np.cumsum(weights / TREES, axis=1)

        def quantile(level: float) -> NDArray[np.float64]:
            index = np.minimum((cumulative < level - 1e-9).sum(axis=1), len(self._sorted) - 1)
            targets: NDArray[np.float64] = self._sorted[index]
            return targets

        mean = weights @ self._sorted / TREES
        return Prediction(mean, quantile((1 - coverage) / 2), quantile((1 + coverage) / 2))
