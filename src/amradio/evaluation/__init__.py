from .base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result, Rows, measure

EVALUATIONS: tuple[type[EvaluationSettings], ...] = ()
"""Every kind of evaluation; a new one is one file and one entry here."""

__all__ = ["EVALUATIONS", "Bench", "Evaluation", "EvaluationSettings", "Metric", "Predict", "Result", "Rows", "measure"]
