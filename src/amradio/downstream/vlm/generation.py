"""Short answers of a vision-language model to questions on images: greedy, in batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from ...errors import UserError
from ...teachers.loading import quiet
from .assembly import Vlm


class Replies(NamedTuple):
    """What a model says to a batch."""

    texts: list[str]
    """Without spaces around them."""
    sizes: list[tuple[int, int]]
    """(height, width) px of the images as the tower receives them; empty without images."""


@torch.inference_mode()
def answer(
    vlm: Vlm,
    prompts: Sequence[str],
    images: Sequence[Image.Image] | None,
    *,
    max_new_tokens: int = 16,
    image_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> Replies:
    """What the model says to each prompt; greedy, so the same at every call.

    Args:
        vlm: on any device.
        prompts: B texts, one turn of a user each.
        images: B images in RGB; None asks the language model without any.
        max_new_tokens: of an answer.
        image_size: px of the long side (of the square, where the processor makes squares); None for that of the processor.
        autocast: precision of the computation; None for that of the weights.
    """
    processor: Any = vlm.processor
    network: Any = vlm.network
    content = [[{"type": "text", "text": prompt}] for prompt in prompts]
    if images is not None:
        content = [[{"type": "image"}, *parts] for parts in content]
    conversations = [[{"role": "user", "content": parts}] for parts in content]
    texts = [processor.apply_chat_template(conversation, add_generation_prompt=True) for conversation in conversations]
    options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": False}
    if images is not None and image_size is not None:
        options |= sizes_of(vlm, image_size)
    device = vlm.network.device
    inputs = processor(images=list(images) if images is not None else None, text=texts, **options).to(device)
    with torch.autocast(device.type, autocast, enabled=autocast is not None), quiet():
        tokens = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    replies = processor.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    if images is None:
        sizes = []
    elif "image_sizes" in inputs:
        sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
    else:
        sizes = [tuple(inputs["pixel_values"].shape[-2:])] * len(images)
    return Replies([reply.strip() for reply in replies], sizes)


def sizes_of(vlm: Vlm, image_size: int) -> dict[str, Any]:
    """The processor's arguments for another size of images than its own."""
    stated = vlm.processor.image_processor.size
    if stated.get("longest_edge"):
        return {"size": {"longest_edge": image_size}}
    square = {"height": image_size, "width": image_size}
    return {"size": {"shortest_edge": image_size}, "crop_size": square} if stated.get("shortest_edge") else {"size": square}


def side_of(vlm: Vlm) -> int:
    """px of the long side of images, or of the square, that the processor makes."""
    stated = vlm.processor.image_processor.size
    return int(stated.get("longest_edge") or stated.get("shortest_edge") or stated["height"])


def check_size(vlm: Vlm, image_size: int) -> None:
    """Raises UserError where the tower takes no square image of this size."""
    student = vlm.student
    if student is not None and student.nearest_size(image_size, image_size) != (image_size, image_size):
        near = student.nearest_size(image_size, image_size)
        raise UserError(f"image_size: {image_size} px is no side of an image that the student takes; take {near[0]}")
