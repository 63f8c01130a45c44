"""Zero-shot classification: class names as prompts through the teacher's own text encoder."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from ...labelled.classification import AnyLabelled, LabelledSet, check_named, share_of_most_frequent
from ..base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result
from ..reading import Broken
from ..summaries import summaries
from ..text_classifier import class_embeddings, read_templates, same_names, summary_rows, taught, texted


class ZeroShotSettings(EvaluationSettings):
    """Images against class names in prompts, by cosine; rows are heads and teachers of text space (CLIP, OpenCLIP, SigLIP)."""

    type: Literal["zero_shot"] = "zero_shot"
    data: AnyLabelled
    """Images with classes; the readable names of the classes go into the prompts."""
    templates: str | list[str] = "openai"
    """Prompts with {} for the class: a list, a text file with one a line, or `openai` for the 80 of OpenAI for ImageNet."""
    heads: list[str] | None = None
    """Names of teachers; null for all that have a text encoder."""

    def build(self) -> "ZeroShot":
        """Opens the data; raises UserError where they are missing, a class has no readable name, or a template has no place for it."""
        images = self.data.build()
        check_named(images)
        return ZeroShot(images, read_templates(self.templates), self.heads)


class ZeroShot(Evaluation):
    """Accuracy of the class whose prompts are nearest to an image's summary: the evaluation `zero_shot`."""

    is_shared = True

    def __init__(self, images: LabelledSet, templates: Sequence[str], heads: Sequence[str] | None):
        self.images, self.templates, self.heads = images, templates, heads

    def check(self, predict: Predict, bench: Bench) -> None:
        """Raises UserError where no teacher has a text encoder, or none of the rows is in its space."""
        texted(predict, bench, self.heads)

    def run(self, predict: Predict, bench: Bench) -> Result:
        """Top-1 (and top-5 where there are more than ten classes) of every row in text space."""
        broken = Broken()
        groups = texted(predict, bench, self.heads)
        features_of = summaries(self.images, taught(summary_rows(groups.values()), bench, "summary"), bench, broken)
        labels = torch.tensor(self.images.labels)
        tops = (1, 5) if len(self.images.classes) > 10 else (1,)
        rows: dict[str, dict[str, float]] = {}
        for teacher, calls in groups.values():
            classes = class_embeddings(teacher, self.images.classes, self.templates).cpu()
            for name in calls:
                if name in features_of:
                    order = (F.normalize(features_of[name].features, dim=1) @ classes.T).topk(max(tops), dim=1).indices
                    right = order == labels[features_of[name].indices][:, None]
                    rows[name] = {f"top{top}": 100 * float(right[:, :top].any(1).double().mean()) for top in tops}
        return Result(
            metrics=[Metric(f"top{top}", f"top-{top}") for top in tops],
            rows=rows,
            counts={
                "images": len(labels),
                "classes": len(self.images.classes),
                "prompts": len(self.templates),
                "broken": len(broken.reasons),
            },
            fingerprint=self.images.fingerprint(),
            floors={f"top{top}": share_of_most_frequent(labels, top) for top in tops},
            floor="always the most frequent classes",
            notes=(*broken.note(), *same_names(self.images.classes), "the floor is always the most frequent class"),
        )
