"""The same vision-language model for programs without this package: transformers' own RadioModel as the tower."""

import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaImageProcessor, LlavaProcessor, RadioModel

from ...errors import UserError, shown
from ...formats.base import ExportSettings, LoadedModel
from ...formats.transformers import Transformers
from ...model import Model
from ...teachers.loading import quiet
from .assembly import Vlm
from .generation import side_of


def plain(vlm: Vlm) -> Vlm:
    """A copy whose tower is a `RadioModel`; language model and projector are shared with `vlm`.

    A RadioModel takes one size of images, so they are squares with margins. Of a student with one token before its patches, LLaVA's
    strategy `default` cuts that one off. With more tokens there is no such strategy: the language model also gets them all (`full`), which
    it has not seen in training. Raises UserError where the student is no ViT that RadioModel has, or a head gives the map.
    """
    student = vlm.student
    if student is None:
        raise UserError("the vision tower is none of amradio's, so that the folder needs no other form; use it as it is")
    tower = vlm.network.model.vision_tower
    problems = list(Transformers().unsupported_reasons(student.config, student.network))
    if tower.config.head is not None:
        problems.append(f"its image tokens are the map of the head '{tower.config.head}', and RadioModel is a backbone alone")
    if problems:
        raise UserError(*problems)
    radio = _radio(student)
    num_prefix = radio.config.num_cls_tokens + radio.config.num_registers
    strategy = "default" if num_prefix == 1 else "full"
    config = LlavaConfig(
        vision_config=radio.config,
        text_config=deepcopy(vlm.network.config.text_config),
        image_token_index=vlm.network.config.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=vlm.network.config.tie_word_embeddings,
    )
    with torch.device("meta"), quiet():
        network = LlavaForConditionalGeneration(config)
    network.model.vision_tower = radio
    network.model.multi_modal_projector = vlm.network.model.multi_modal_projector
    network.model.language_model = vlm.network.model.language_model
    network.lm_head = vlm.network.lm_head
    network.generation_config = GenerationConfig(**vlm.network.generation_config.to_dict())  # pyright: ignore[reportOptionalMemberAccess]
    side = side_of(vlm)
    images = LlavaImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_pad=True,
        do_normalize=False,
        image_mean=[float(value) for value in student.network.student.mean.flatten()],
    )
    processor = LlavaProcessor(
        images,
        vlm.processor.tokenizer,  # pyright: ignore[reportAttributeAccessIssue]
        patch_size=radio.config.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=vlm.processor.chat_template,
        num_additional_image_tokens=num_prefix,
    )
    return Vlm(network.eval(), processor)


def prefix_tokens(vlm: Vlm) -> int:
    """Tokens before the patches that the language model gets."""
    processor: Any = vlm.processor
    return 0 if processor.vision_feature_select_strategy == "default" else processor.num_additional_image_tokens


def check_target(folder: Path) -> None:
    """Raises UserError where there is something at `folder`, or no folder to put it into."""
    if folder.exists():
        raise UserError(f"out: {shown(folder)} is there already; nothing was touched; give a new folder")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"out: there is no folder {shown(folder.absolute().parent)}; create it, or give another")


def _radio(student: Model) -> Any:
    """The student as transformers' RadioModel."""
    with tempfile.TemporaryDirectory() as temporary, quiet():
        Transformers().write(Path(temporary), LoadedModel(student.config, student.network), ExportSettings(()))
        return RadioModel.from_pretrained(
            temporary, dtype=torch.float32, local_files_only=True, trust_remote_code=False, attn_implementation="sdpa"
        ).eval()
