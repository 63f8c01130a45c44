"""Settings of the evaluations of vision-language models: GQA, POPE, TextVQA and VQAv2 on their official files."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

import pydantic

from ...config import Positive, UserPath
from ...files import user_path
from ..base import Bench, EvaluationSettings, Predictors

if TYPE_CHECKING:
    from .answering import QuestionAnswering

Row = Literal["vlm", "vlm/without_image"]


class QuestionsSettings(EvaluationSettings):
    """What the four have in common; each takes PATH as a vision-language model (`amradio vlm train`, or a LLaVA folder)."""

    images: UserPath
    """The folder of the images."""
    models: list[Row] = pydantic.Field(default=["vlm"], min_length=1)
    """vlm, and vlm/without_image for its language model alone, which shows what can be guessed from the question."""
    limit: Positive | None = None
    """Questions at most, spread evenly over each file; null for all."""
    batch_size: Positive = 8
    """Questions that are answered at once."""
    max_new_tokens: Positive = 16
    """Of an answer; those of these sets are shorter."""
    answers: UserPath | None = None
    """A new JSON-lines file for every question with the answer and its score; null for none."""

    def written(self) -> Mapping[str, str]:
        """The answers."""
        return {} if self.answers is None else {"answers": self.answers}

    def rows(self, bench: Bench) -> Predictors:
        """None: no row is one of features."""
        return bench.predict().only([])


class GqaSettings(QuestionsSettings):
    """GQA: exact match of whole answers. images: `images`, with `{imageId}.jpg`."""

    type: Literal["gqa"] = "gqa"
    questions: UserPath
    """testdev_balanced_questions.json (LLaVA's tables) or val_balanced_questions.json (AM-RADIO's)."""

    def build(self) -> "QuestionAnswering":
        """Reads the questions; raises UserError with all that is wrong with them."""
        from ...downstream.vlm.questions import read_gqa
        from .answering import ExactMatch, QuestionAnswering

        return QuestionAnswering(self, {"": read_gqa(user_path(self.questions), user_path(self.images))}, ExactMatch())


class PopeSettings(QuestionsSettings):
    """POPE: is there such an object? F1 and the rest are means over the files. images: COCO's `val2014`."""

    type: Literal["pope"] = "pope"
    questions: Annotated[list[UserPath], pydantic.Field(min_length=1)]
    """Of coco_pope_random.json, coco_pope_popular.json (AM-RADIO's) and coco_pope_adversarial.json; LLaVA-1.5 states the mean of all."""

    def build(self) -> "QuestionAnswering":
        """Reads the questions; raises UserError with all that is wrong with them."""
        from functools import partial

        from ...downstream.vlm.questions import read_pope
        from ...errors import together
        from .answering import QuestionAnswering, YesOrNo

        files = [user_path(file) for file in dict.fromkeys(self.questions)]
        read = together(*(partial(read_pope, file, user_path(self.images)) for file in files))
        return QuestionAnswering(self, {file.stem: part for file, part in zip(files, read, strict=True)}, YesOrNo())


class TextvqaSettings(QuestionsSettings):
    """TextVQA: VQA accuracy. images: `train_images`, with `{image_id}.jpg`."""

    type: Literal["textvqa"] = "textvqa"
    questions: UserPath
    """TextVQA_0.5.1_val.json."""
    ocr: UserPath | None = None
    """TextVQA_Rosetta_OCR_v0.2_val.json, whose tokens go below the question as in LLaVA-1.5's tables; null for none. Numbers with and
    without it cannot be compared."""

    def build(self) -> "QuestionAnswering":
        """Reads the questions; raises UserError with all that is wrong with them."""
        from ...downstream.vlm.questions import read_textvqa
        from .answering import QuestionAnswering, VqaAccuracy

        ocr = None if self.ocr is None else user_path(self.ocr)
        return QuestionAnswering(self, {"": read_textvqa(user_path(self.questions), user_path(self.images), ocr)}, VqaAccuracy())


class Vqav2Settings(QuestionsSettings):
    """VQAv2: VQA accuracy, and that of each type of answer. images: COCO's `val2014`, or `test2015` for test-dev."""

    type: Literal["vqav2"] = "vqav2"
    questions: UserPath
    """v2_OpenEnded_mscoco_val2014_questions.json, or that of test-dev2015."""
    annotations: UserPath | None = None
    """v2_mscoco_val2014_annotations.json; null for test-dev, whose answers are not public."""
    submission: UserPath | None = None
    """A new file in the form that EvalAI takes (AM-RADIO's number is that of test-dev); null for none."""

    def written(self) -> Mapping[str, str]:
        """The answers and EvalAI's file."""
        return {**super().written(), **({} if self.submission is None else {"submission": self.submission})}

    @pydantic.model_validator(mode="after")
    def _has_a_purpose(self) -> Self:
        if self.annotations is None and self.submission is None:
            raise ValueError("annotations: without them nothing can be scored; give them, or submission for EvalAI's file")
        return self

    def build(self) -> "QuestionAnswering":
        """Reads the questions; raises UserError with all that is wrong with them."""
        from ...downstream.vlm.questions import read_vqav2
        from .answering import QuestionAnswering, VqaAccuracy

        annotations = None if self.annotations is None else user_path(self.annotations)
        questions = read_vqav2(user_path(self.questions), annotations, user_path(self.images))
        return QuestionAnswering(self, {"": questions}, VqaAccuracy(), None if self.submission is None else user_path(self.submission))
