from typing import TYPE_CHECKING

from ..config import one_of
from .base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result, Rows, measure
from .classification.knn import KnnSettings
from .classification.linear_probe import LinearClassificationSettings
from .classification.retrieval import RetrievalSettings
from .classification.zero_shot import ZeroShotSettings
from .dense.coco_detection import CocoDetectionSettings
from .dense.depth import DepthSettings
from .dense.keypoint_correspondence import KeypointCorrespondenceSettings
from .dense.linear_segmentation import LinearSegmentationSettings
from .dense.multiview_correspondence import MultiviewCorrespondenceSettings
from .dense.open_vocabulary_segmentation import OpenVocabularySegmentationSettings
from .dense.promptable_segmentation import PromptableSegmentationSettings
from .dense.surface_normals import NormalsSettings
from .external.settings import ClipBenchmarkSettings, MiebSettings
from .features.statistics import StatisticsSettings
from .features.teacher_agreement import AgreementSettings
from .language.settings import GqaSettings, PopeSettings, TextvqaSettings, Vqav2Settings
from .throughput import ThroughputSettings

EVALUATIONS: tuple[type[EvaluationSettings], ...] = (
    KnnSettings,
    ZeroShotSettings,
    RetrievalSettings,
    LinearSegmentationSettings,
    OpenVocabularySegmentationSettings,
    PromptableSegmentationSettings,
    DepthSettings,
    NormalsSettings,
    CocoDetectionSettings,
    MultiviewCorrespondenceSettings,
    KeypointCorrespondenceSettings,
    AgreementSettings,
    StatisticsSettings,
    LinearClassificationSettings,
    ThroughputSettings,
    GqaSettings,
    PopeSettings,
    TextvqaSettings,
    Vqav2Settings,
    MiebSettings,
    ClipBenchmarkSettings,
)
"""Every kind of evaluation; a new one is one file and one entry here."""

if TYPE_CHECKING:
    AnyEvaluation = EvaluationSettings
else:
    AnyEvaluation = one_of(EVALUATIONS)

__all__ = ["EVALUATIONS", "AnyEvaluation", "Bench", "Evaluation", "EvaluationSettings", "Metric", "Predict", "Result", "Rows", "measure"]
