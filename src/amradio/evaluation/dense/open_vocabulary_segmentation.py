"""Open-vocabulary segmentation: each cell of a text-aligned map gets the class whose prompt it is nearest to; nothing is trained."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...labelled.segmentation import AnyMaps, LabelledMaps
from ...teachers.base import Teacher
from ..base import Bench, Evaluation, EvaluationSettings, Framing, Predict, Result
from ..text_classifier import class_embeddings, read_templates, same_names, taught, texted
from .linear_segmentation import with_maps
from .mean_iou import Priors
from .refinement import Refinement, refined
from .scoring import score


class OpenVocabularySegmentationSettings(EvaluationSettings):
    """Maps of heads and teachers of text space (CLIP, OpenCLIP, SigLIP) against class names in prompts, mean IoU."""

    view: ClassVar[Framing] = "whole"

    type: Literal["open_vocabulary_segmentation"] = "open_vocabulary_segmentation"
    data: AnyMaps
    """Labelled images; the names of the classes go into the prompts."""
    templates: str | list[str] = "openai"
    """Prompts with {} for the class: a list, a text file with one a line, or `openai` for the 80 of OpenAI for ImageNet."""
    heads: list[str] | None = None
    """Names of teachers; null for all that have a text encoder."""
    refine: Refinement | None = None
    """Whether cells are averaged with those that are like them or beside them before they are compared with the prompts; null for not."""

    def build(self) -> "OpenVocabularySegmentation":
        """Opens the data; raises UserError where they are missing or damaged, or a template has no place for the class."""
        return OpenVocabularySegmentation(self.data.build(), read_templates(self.templates), self.heads, self.refine)


class OpenVocabularySegmentation(Evaluation):
    """Mean IoU of the class whose prompt is nearest to each cell: the evaluation `open_vocabulary_segmentation`."""

    is_shared = True

    def __init__(self, maps: LabelledMaps, templates: Sequence[str], heads: Sequence[str] | None = None, refine: Refinement | None = None):
        self.maps, self.templates, self.heads, self.refine = maps, templates, heads, refine

    def check(self, predict: Predict, bench: Bench) -> None:
        """Raises UserError where no teacher has a text encoder, or no head of one has a map."""
        groups = texted(predict, bench, self.heads)
        taught({row: predict[row] for _, calls in groups.values() for row in calls}, bench, "spatial")

    def run(self, predict: Predict, bench: Bench) -> Result:
        """`mean_iou`, `accuracy`, `class_accuracy`, in %, of every row in text space that has a map; details: the IoU of each class.

        Floors: the most frequent class, overall and at each place, of the very labels that are scored. Raises UserError where there
        is no text encoder, or no map in its space.
        """
        groups = texted(predict, bench, self.heads)
        rows = {row: teacher for teacher, calls in groups.values() for row in calls}
        calls = taught(with_maps({row: predict[row] for row in rows}, bench.device), bench, "spatial")
        classes = {
            id(teacher): class_embeddings(teacher, self.maps.names, self.templates).to(bench.device) for teacher, _ in groups.values()
        }

        def logits_of(images: Tensor) -> dict[str, Tensor]:
            return {row: similarities(rows[row], call(images).spatial, classes[id(rows[row])], self.refine) for row, call in calls.items()}

        result = score(self.maps, logits_of, bench, Priors(self.maps))
        notes = (*result.notes, *same_names(self.maps.names))
        return replace(result, counts=dict(result.counts) | {"prompts": len(self.templates)}, notes=notes)


def similarities(teacher: Teacher, spatial: Tensor | None, classes: Tensor, refine: Refinement | None = None) -> Tensor:
    """Cosines [B, K, h, w] of a map [B, h, w, D] in the teacher's feature space with the embeddings of K classes [K, E].

    refine: how cells in text space are averaged first; None for not.
    """
    assert spatial is not None, "rows without a map were sorted out before"
    with torch.inference_mode():
        cells = F.normalize(teacher.project_spatial(spatial), dim=-1)
        if refine is not None:
            cells = refined(cells, refine)
        return (cells @ classes.T).permute(0, 3, 1, 2)
