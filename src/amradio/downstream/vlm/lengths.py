"""How many tokens a sample needs before its first word: an image, and the text of the chat around it."""

from collections.abc import Iterable, Sequence
from typing import Any

from .assembly import Vlm
from .conversations import Sample
from .generation import side_of


def image_tokens(vlm: Vlm) -> int:
    """Of an image of full size: the square of the long side."""
    processor: Any = vlm.processor
    return (side_of(vlm) // processor.patch_size) ** 2


def missing_room(vlm: Vlm, samples: Sequence[Sample], max_tokens: int, is_chat: bool) -> str | None:
    """Why `max_tokens` cuts through an image, which the language model cannot take; None where there is room.

    is_chat: whether the text is LLaVA's conversation, with what stands before the image, or the image alone.
    """
    if all(sample.image is None for sample in samples):
        return None
    cells = image_tokens(vlm)
    around = _tokens_around(vlm, {text for sample in samples for role, text in sample.turns if role == "system"}) if is_chat else 0
    least = cells + around + 1
    if max_tokens >= least:
        return None
    text = f" and the text around it {around}" if around else ""
    advice = f"raise it to {least:,} or more (the answers need room as well), or lower image_size"
    return f"max_tokens: {max_tokens:,} tokens hold no image of {side_of(vlm)} px, which takes {cells:,}{text}; {advice}"


def _tokens_around(vlm: Vlm, systems: Iterable[str]) -> int:
    """Of a conversation whose user shows an image and says nothing; of the longest of the texts of the system."""
    processor: Any = vlm.processor
    shown = {"role": "user", "content": [{"type": "image"}]}
    chats = [[shown], *([{"role": "system", "content": text}, shown] for text in systems)]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    return max(len(ids) for ids in processor.tokenizer(texts, add_special_tokens=False)["input_ids"])
