"""Maps in text space: what each cell of a map would be as an image of its own, for the towers that have a text encoder."""

from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..teachers.base import Teacher
from ..teachers.clip import ClipTeacher
from ..teachers.open_clip import OpenClipTeacher
from ..teachers.siglip import NaflexTeacher, SiglipTeacher


@torch.inference_mode()
def to_text_space(teacher: Teacher, spatial: Tensor) -> Tensor:
    """A map [B, H, W, D] in the teacher's own feature space, its own or a student's -> [B, H, W, E] in the space of its text encoder.

    CLIP: the final norm and the visual projection, which the class token goes through, on every patch (as MaskCLIP and many after it).
    SigLIP: the attention pooling over one patch alone, which is its value projection, output projection and MLP.
    OpenCLIP: the projection (its tokens have the final norm already, but where it comes after the pooling); of timm towers the pooling
    over one patch alone. Raises UserError where the tower is none of these.
    """
    tokens = spatial.flatten(0, 2)
    if isinstance(teacher, ClipTeacher):
        dtype = _dtype(teacher.model.visual_projection)
        found = teacher.model.visual_projection(teacher.model.vision_model.post_layernorm(tokens.to(dtype)))
    elif isinstance(teacher, SiglipTeacher):
        head = teacher.model.vision_model.head
        found = head(tokens[:, None].to(_dtype(head)))
    elif isinstance(teacher, NaflexTeacher):
        head = teacher.model.vision_model.head
        found = head(tokens[:, None].to(_dtype(head)), None)
    elif isinstance(teacher, OpenClipTeacher):
        found = _of_open_clip(teacher, tokens)
    else:
        raise UserError(f"teacher '{teacher.source}': its map has no known way into text space; take a clip, open_clip or siglip teacher")
    return found.float().unflatten(0, spatial.shape[:3])


def _of_open_clip(teacher: OpenClipTeacher, tokens: Tensor) -> Tensor:
    visual: Any = teacher.model.visual
    if teacher.gives_tokens:
        if visual.final_ln_after_pool:
            tokens = visual.ln_post(tokens.to(_dtype(visual.ln_post)))
        return tokens.to(visual.proj.dtype) @ visual.proj if visual.proj is not None else tokens
    trunk = visual.trunk
    prefix = getattr(trunk, "num_prefix_tokens", None)
    if prefix is None:
        raise UserError(f"teacher '{teacher.source}': a tower of {type(trunk).__name__} pools before it projects; take one with a ViT")
    # A class token is pooled, or an average over the patches behind it: with the same token in every place both are that token.
    alone = tokens[:, None].expand(-1, prefix + 1, -1).to(_dtype(trunk))
    return visual.head(trunk.forward_head(alone))


def _dtype(module: Any) -> torch.dtype:
    return next(module.parameters()).dtype
