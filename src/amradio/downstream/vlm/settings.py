"""Settings of vision-language training: the model, two stages, their data. Reading them needs no torch."""

from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from ...config import (
    Decay,
    LearningRate,
    Pixels,
    Positive,
    ReadingProcesses,
    Seed,
    Settings,
    Share,
    UserPath,
    defaults,
    one_of,
    validate,
)
from ...engine.settings import RunEngineSettings
from ...errors import UserError
from ...words import read_words


class ConversationsSettings(Settings):
    """Conversations on images in LLaVA's JSON layout."""

    annotations: UserPath
    """A list of `{"id", "image", "conversations": [{"from": "human" or "gpt", "value"}]}`; samples without `image` are text alone."""
    images: UserPath
    """The folder to which the paths of images are relative."""
    limit: Positive | None = None
    """Samples at most, the first ones; null for all."""


class StageSettings(Settings):
    """One of the two stages; the defaults are LLaVA-1.5's."""

    data: ConversationsSettings
    """What it learns from."""
    epochs: Annotated[float, pydantic.Field(gt=0, le=10_000)] = 1.0
    """Passes over the samples."""
    batch_size: Positive = 256
    """Samples a step, over all processes together."""
    learning_rate: LearningRate = 1e-3
    """Peak learning rate of AdamW, after which it falls to 0 along a cosine."""
    weight_decay: Decay = 0.0
    """Decay of matrices."""
    warmup: Share = 0.03
    """Share of the steps in which the rate rises."""
    max_tokens: Annotated[int, pydantic.Field(ge=16, le=1_000_000)] = 2048
    """Tokens of a sample, image tokens included; longer texts are cut."""


class AlignmentSettings(StageSettings):
    """Stage 1: the projector alone learns captions (LLaVA's 558k)."""


class FullSettings(Settings):
    """Every weight of the language model is trained."""

    type: Literal["full"] = "full"


class LowRankSettings(Settings):
    """Low-rank additions to the language model's linear layers (peft), merged at the end; LLaVA's rank and scale."""

    type: Literal["lora"] = "lora"
    rank: Annotated[int, pydantic.Field(ge=1, le=4096)] = 128
    """Of each addition."""
    alpha: Annotated[float, pydantic.Field(gt=0, le=100_000)] = 256.0
    """The addition is alpha / rank times the product of its two matrices."""
    dropout: Share = 0.05
    """Of what the additions read."""


TRAININGS: tuple[type[Settings], ...] = (FullSettings, LowRankSettings)
"""What is trained of the language model in stage 2."""

if TYPE_CHECKING:
    AnyTraining = FullSettings | LowRankSettings
else:
    AnyTraining = one_of(TRAININGS)


class InstructionSettings(StageSettings):
    """Stage 2: projector and language model learn to follow instructions (LLaVA's 665k mix)."""

    batch_size: Positive = 128
    """Samples a step, over all processes together."""
    learning_rate: LearningRate = 2e-5
    """Peak learning rate of AdamW (LLaVA-1.5: 2e-5; 2e-4 for lora), after which it falls to 0 along a cosine."""
    language_model: AnyTraining = FullSettings()
    """What is trained of it."""


class VlmEngineSettings(RunEngineSettings):
    """How a run is carried out."""

    gradient_checkpointing: bool = False
    """Compute activations of the language model again in the backward pass: less memory, about a fifth slower."""


class VlmRecipe(Settings):
    """The whole run of `amradio vlm train`. Only model, language_model, a stage and out are required."""

    model: UserPath
    """The student: a run folder, or a model in any format that is read. It stays frozen."""
    language_model: str
    """A causal language model of transformers with its tokenizer: a folder, or a name on the hub."""
    out: UserPath
    """The run folder. The same command resumes what is there."""
    head: str | None = None
    """The teacher whose head gives the map that becomes image tokens; null for the backbone's own map."""
    image_size: Pixels = 432
    """px of the long side of an image, the aspect kept (AM-RADIO: 432); of the square, with margins, where the student takes one size at a
    time."""
    alignment: AlignmentSettings | None = None
    """Stage 1; null to leave it out."""
    instruction: InstructionSettings | None = None
    """Stage 2; null to leave it out."""
    num_workers: ReadingProcesses = None
    engine: VlmEngineSettings = VlmEngineSettings()
    seed: Seed = 0
    """Of the projector's weights, the order of samples and every other draw."""

    @classmethod
    def load(cls, *words: str) -> "VlmRecipe":
        """Reads a recipe from words, each a YAML file or `key=value`, merged left to right.

        Raises UserError with every problem at once, each with its key and the nearest name.
        """
        recipe = validate(cls, read_words(words, defaults(cls), "vlm"))
        if recipe.alignment is None and recipe.instruction is None:
            raise UserError("alignment: there is no stage to train; give alignment.data, instruction.data, or both")
        return recipe
