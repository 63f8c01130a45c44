"""Text heat maps against the towers' own layers, computed from weights that the original library has loaded."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import BatchEncoding

import tiny
from amradio.errors import UserError
from amradio.model import Model
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.teachers.from_head import settings_of
from amradio.teachers.text_encoder import TextEncoder

DIMS = {"clip": (24, 32), "open_clip": (24, 32), "siglip": (32, 32), "naflex": (32, 32)}
BUILDERS = {"clip": tiny.tiny_clip, "open_clip": tiny.tiny_open_clip, "siglip": tiny.tiny_siglip, "naflex": tiny.tiny_naflex}
TYPES = {"naflex": "siglip"}


def student(name: str, dims: tuple[int | None, int | None], source: str = "gone") -> Model:
    """A tiny ViT with one head, `words`."""
    torch.manual_seed(0)
    summary, spatial = (None if dim is None else HeadPart(head="mlp", dim=dim) for dim in dims)
    head = HeadConfig(summary=summary, spatial=spatial, teacher={"type": TYPES.get(name, name), "source": source})
    small = {"type": "vit", "dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "max_image_size": 64}
    config = NetworkConfig.model_validate({"student": small, "num_summaries": 1, "heads": {}}).model_copy(update={"heads": {"words": head}})
    return Model(config, config.build())


def of_clip(folder: Path) -> Callable[[Tensor], Tensor]:
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    norm = model.vision_model.post_layernorm
    return lambda cell: F.layer_norm(cell, cell.shape, norm.weight, norm.bias, norm.eps) @ model.visual_projection.weight.T


def of_siglip(folder: Path) -> Callable[[Tensor], Tensor]:
    """Attention over one token gives its value, whatever the query: value and output projection, then the MLP beside it."""
    head = transformers.AutoModel.from_pretrained(folder).eval().vision_model.head
    attention = head.attention
    values, bias = attention.in_proj_weight[-32:], attention.in_proj_bias[-32:]

    def pooled(cell: Tensor) -> Tensor:
        seen = attention.out_proj.weight @ (values @ cell + bias) + attention.out_proj.bias
        return seen + head.mlp(head.layernorm(seen)[None])[0]

    return pooled


def of_open_clip(folder: Path) -> Callable[[Tensor], Tensor]:
    projection = open_clip.create_model(f"local-dir:{folder}").visual.proj
    return lambda cell: cell @ projection


ALONE = {"clip": of_clip, "open_clip": of_open_clip, "siglip": of_siglip, "naflex": of_siglip}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIMS)
def test_maps_are_the_cosines_of_each_cell_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = BUILDERS[name](tmp_path / "teacher")
    model = student(name, DIMS[name])
    words = model.text("words", teacher=folder)  # its image encoder is dropped
    whole = settings_of("words", {}, str(folder)).build()
    tokens = torch.randint(1, 97, (3, 16))
    tokens[:, 12:] = 98
    given = tokens if name == "open_clip" else BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    monkeypatch.setattr(type(whole), "tokenizer", lambda *_, **__: given)
    images = torch.rand(2, 3, 24, 40)

    found = words.map(images, ["a", "b", "c"])

    spatial = model.features(images, "words")["words"].spatial
    assert found.shape == (2, 3, *spatial.shape[1:3])
    assert found.shape[2:] == (3, 5)
    texts, alone = whole.encode_text(["a", "b", "c"]), ALONE[name](folder)
    with torch.no_grad():
        for image, text, row, column in ((0, 0, 0, 0), (1, 2, 2, 4), (0, 1, 1, 3)):
            wanted = F.cosine_similarity(alone(spatial[image, row, column]), texts[text], dim=0)
            torch.testing.assert_close(found[image, text, row, column], wanted, rtol=1e-4, atol=1e-5)
    assert not found.is_inference()
    assert not found.requires_grad
    shares = (100 * found).softmax(1)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 3, 5))


@pytest.mark.slow
def test_a_head_without_a_map_or_with_another_one(tmp_path: Path) -> None:
    folder = tiny.tiny_clip(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"^map: this head has no map; train it with a spatial_weight above 0"):
        student("clip", (24, None)).text("words", teacher=folder).map(torch.rand(1, 3, 16, 16), "a dog")
    words = student("clip", (24, 20)).text("words", teacher=folder)
    words.teacher.encode_text = lambda texts: torch.rand(len(texts), 24)
    with pytest.raises(UserError, match=r"^map: the head's map has 20 channels, that of '.*' has 32; it was learnt from another layer"):
        words.map(torch.rand(1, 3, 16, 16), "a dog")


def test_a_teacher_of_another_kind_has_no_text_space(tmp_path: Path) -> None:
    teacher = settings_of("words", {}, str(tiny.tiny_dinov2(tmp_path))).build()
    with pytest.raises(UserError, match="its map has no text space; take a clip, open_clip or siglip teacher"):
        teacher.project_spatial(torch.rand(1, 2, 2, 32))


class Words(torch.nn.Module):
    """Stands in for a teacher whose text space has a direction for each of four words."""

    source, has_text, spatial_dim = "words", True, 4

    def encode_text(self, texts: list[str]) -> Tensor:
        return torch.stack([torch.eye(4)[int(text)] * 3 for text in texts])

    def project_spatial(self, spatial: Tensor) -> Tensor:
        return 2 * spatial


def test_names_of_masks_are_means_over_their_cells():
    cells = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(5, 12, 16, generator=torch.Generator().manual_seed(1)) > 0.6
    masks[0] = False
    masks[0, 5:7, 9:11] = True  # in the cells (1, 2)
    encoder = TextEncoder(Words(), lambda image, size: cells)  # type: ignore[arg-type]
    named = encoder.name_masks("a picture", masks, ["0", "3", "1"])
    assert named.shape == (5, 3)
    for mask, row in zip(masks, named, strict=True):
        total = torch.zeros(4)
        for y in range(12):
            for x in range(16):
                if mask[y, x]:
                    total += F.normalize(cells[0, y // 4, x // 4], dim=0)
        assert row.tolist() == pytest.approx([float(F.normalize(total, dim=0)[word]) for word in (0, 3, 1)], abs=1e-5)
    torch.testing.assert_close(named[0], F.normalize(cells[0, 1, 2], dim=0)[[0, 3, 1]])
    for wrong, message in ((masks[0], r"masks: expected a tensor \[N, H, W\], found \[12, 16\]"), ("all", "found 'all'")):
        with pytest.raises(UserError, match=message):
            encoder.name_masks("a picture", wrong, ["0"])
    several = TextEncoder(Words(), lambda image, size: cells.expand(2, -1, -1, -1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="image: expected one picture, found 2"):
        several.name_masks("pictures", masks, ["0"])
    with pytest.raises(UserError, match="this head has no map"):
        TextEncoder(Words()).name_masks("a picture", masks, ["0"])  # type: ignore[arg-type]
