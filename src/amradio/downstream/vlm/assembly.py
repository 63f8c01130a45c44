"""A vision-language model from its parts: a student as the tower, a fresh projector, and a language model."""

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PixtralImageProcessor,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ...errors import UserError
from ...libraries import first_line
from ...model import Model
from ...teachers.loading import Source, fetch, quiet
from .tower import AmradioLlavaProcessor, AmradioVision, AmradioVisionConfig, tower_config

IMAGE_TOKEN = "<image>"
TEMPLATE = (
    "{{ bos_token if bos_token else '' }}"
    "{% if messages[0]['role'] != 'system' %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{% endif %}"
    "{% for message in messages %}"
    "{% set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string else message['content'] %}"
    "{% if message['role'] == 'assistant' %}"
    "ASSISTANT:{% generation %} {% for part in parts %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% endgeneration %}"
    "{% else %}"
    "{% if message['role'] == 'user' %}USER: {% endif %}"
    "{% for part in parts %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in parts %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %} "
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""LLaVA-1.5's conversation (vicuna v1), with what an assistant says marked for a loss on it alone."""


class Vlm(NamedTuple):
    """A vision-language model."""

    network: LlavaForConditionalGeneration
    processor: LlavaProcessor

    @property
    def student(self) -> Model | None:
        """What its tower is made of; None where the tower is not one of ours."""
        tower = self.network.model.vision_tower
        return tower.model if isinstance(tower, AmradioVision) else None


class _LanguageModel(Source):
    """Where a language model comes from."""

    @property
    def where(self) -> str:
        return f"language_model '{self.model}'"


def assemble(model: Model, head: str | None, image_size: int, language_model: str) -> Vlm:
    """A vision-language model on the CPU in float32, its projector with torch's own random weights.

    Args:
        model: the student; its weights are used as they are, not copied.
        head: the teacher whose head gives the map; None for the backbone's.
        image_size: px of the long side of images; of the square where the student takes one size at a time.
        language_model: a folder or a hub name of a causal language model of transformers with its tokenizer.

    Raises UserError with all problems.
    """
    problems: list[str] = []
    vision = language = None
    try:
        vision = tower_config(model, head, image_size)
    except UserError as error:
        problems += error.problems
    try:
        language = load_language_model(language_model)
    except UserError as error:
        problems += error.problems
    if problems or vision is None or language is None:
        raise UserError(*problems)
    network, tokenizer = language
    return Vlm(_joined(model, vision, network, tokenizer), processor_of(model, vision, tokenizer, image_size))


def load_language_model(name: str) -> tuple[Any, Any]:
    """(causal language model in float32, tokenizer with an image token and padding). Raises UserError where there is none."""
    source = _LanguageModel("", name)
    folder = fetch(source)
    with quiet():
        try:
            special = {"image_token": IMAGE_TOKEN}
            tokenizer = AutoTokenizer.from_pretrained(folder, extra_special_tokens=special, local_files_only=True, trust_remote_code=False)
            network: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, attn_implementation="sdpa"
            )
        except Exception as error:  # the library raises whatever its readers do
            advice = "give a folder or a hub name of a causal language model of transformers with its tokenizer"
            raise UserError(f"{source.where}: {first_line(error)}; {advice}") from None
    if tokenizer.eos_token is None:
        raise UserError(f"{source.where}: its tokenizer has no token for the end of a text (eos_token); set it in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if len(tokenizer) > network.get_input_embeddings().num_embeddings:
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return network, tokenizer


def _joined(model: Model, vision: AmradioVisionConfig, language: Any, tokenizer: Any) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=vision,
        text_config=deepcopy(language.config),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    with torch.device("meta"), quiet():
        network = LlavaForConditionalGeneration(config)
    tower = network.model.vision_tower
    assert isinstance(tower, AmradioVision)
    tower.model.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in tower.model.state_dict()})
    network.model.language_model = language.base_model
    network.lm_head = language.get_output_embeddings()
    network.model.multi_modal_projector = LlavaMultiModalProjector(config)
    network.tie_weights()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    network.generation_config = GenerationConfig(**ends)
    return network.eval()


def processor_of(model: Model, vision: AmradioVisionConfig, tokenizer: Any, image_size: int) -> AmradioLlavaProcessor:
    """Images to [0, 1], which the tower normalises by itself, and texts in LLaVA-1.5's conversation."""
    if vision.packs:
        step = model.min_resolution_step
        images: Any = PixtralImageProcessor(size={"longest_edge": image_size}, patch_size=step, do_normalize=False)
    else:
        mean = [float(value) for value in model.network.student.mean.flatten()]  # the colour of the margin
        square = {"height": image_size, "width": image_size}
        images = LlavaImageProcessor(size={"shortest_edge": image_size}, crop_size=square, do_pad=True, do_normalize=False, image_mean=mean)
    return AmradioLlavaProcessor(
        images, tokenizer, patch_size=vision.patch_size, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )
