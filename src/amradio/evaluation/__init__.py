from .agreement_by_size import AgreementSettings
from .base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result, Rows, measure
from .knn import KnnSettings
from .linear_classification import LinearClassificationSettings
from .linear_segmentation import LinearSegmentationSettings
from .open_vocabulary_segmentation import OpenVocabularySegmentationSettings
from .promptable_segmentation import PromptableSegmentationSettings
from .retrieval import RetrievalSettings
from .speed import ThroughputSettings
from .statistics import StatisticsSettings
from .zero_shot import ZeroShotSettings

EVALUATIONS: tuple[type[EvaluationSettings], ...] = (
    KnnSettings,
    ZeroShotSettings,
    RetrievalSettings,
    LinearSegmentationSettings,
    OpenVocabularySegmentationSettings,
    PromptableSegmentationSettings,
    AgreementSettings,
    StatisticsSettings,
    LinearClassificationSettings,
    ThroughputSettings,
)
"""Every kind of evaluation; a new one is one file and one entry here."""

__all__ = ["EVALUATIONS", "Bench", "Evaluation", "EvaluationSettings", "Metric", "Predict", "Result", "Rows", "measure"]
