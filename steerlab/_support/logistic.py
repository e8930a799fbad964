"""Logistic regression on one thread."""

from typing import Any

from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits


class SerialLogisticRegression(LogisticRegression):
    """scikit-learn's, fitted with one BLAS thread.

    Its products are small: two threads that wait for each other took nine times as long (36 classes, 1,800 rows, 320
    features, two cores).
    """

    def fit(self, x: Any, y: Any, sample_weight: Any = None) -> Any:
        """The weights and the intercept of each class."""
        with threadpool_limits(1, "blas"):
            return super().fit(x, y, sample_weight)
