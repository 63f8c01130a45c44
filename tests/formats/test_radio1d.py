"""RADIO1D in the published layout against a second implementation of its description, whole and cut short."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import amradio
from amradio import UserError
from amradio.recipe import Recipe
from amradio.students import Radio1dSettings
from amradio.students.base import CLIP_MEAN, CLIP_STD

DIM, DEPTH, HEADS, PATCH, SIDE = 32, 5, 4, 8, 12
LEVELS: dict[str, Any] = {"downscale_levels": [3], "decoder_depth": 4, "decoder_upscale_levels": [2]}
SHAPE = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH, "init_values": 0.3}
TEACHERS = [{"name": "clip", "type": "open_clip", "model": "m"}, {"name": "sam", "type": "sam", "use_summary": False}]


class Reference(nn.Module):
    """RADIO1D written from its description a second time, sample by sample, under the published names."""

    def __init__(self, merges: list[int], splits: list[int], decoder_depth: int, filler_side: int = 7):
        super().__init__()
        generator = nn.Module()
        generator.embedder = nn.Linear(3 * PATCH**2, DIM, bias=False)
        generator.pos_embed = nn.Parameter(torch.randn(1, SIDE**2, DIM))
        generator.cls_token = nn.Module()
        generator.cls_token.token = nn.Parameter(torch.randn(4, DIM))
        self.patch_generator, self.merges, self.splits, self.filler_side = generator, merges, splits, filler_side
        self.blocks, self.downscale_blocks, self.prefix_proj_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        dim, heads = DIM, HEADS
        for number in range(DEPTH):
            if number in merges:
                merge = nn.Module()
                merge.norm, merge.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)
                self.downscale_blocks.append(merge)
                self.prefix_proj_blocks.append(nn.Linear(dim, 2 * dim, bias=False))
                dim, heads = 2 * dim, 2 * heads
            self.blocks.append(Block(dim, heads, qkv_bias=True, init_values=0.3, norm_layer=LayerNorm))
        decoder, heads = nn.Module(), HEADS
        decoder.filler_tokens = nn.Parameter(torch.randn(filler_side**2, dim))
        decoder.prefix_tokens = nn.Parameter(torch.randn(4, dim))
        decoder.blocks, decoder.upscale_blocks, decoder.prefix_proj_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number in range(decoder_depth):
            if number in splits:
                split = nn.Module()
                split.expansion, split.norm = nn.Linear(dim, 2 * dim, bias=False), nn.LayerNorm(dim // 2)
                decoder.upscale_blocks.append(split)
                decoder.prefix_proj_blocks.append(nn.Linear(dim, dim // 2, bias=False))
                dim, heads = dim // 2, max(1, heads // 2)
            decoder.blocks.append(Block(dim, heads, norm_layer=LayerNorm))
        decoder.norm = LayerNorm(dim)
        self.decoder = decoder
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)

    def forward(self, images: Tensor, count: int | None = None, early: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W], normalised -> the code, the prefix tokens and the map."""
        outputs = [self.one(image, count, early) for image in images]
        code, prefix, spatial = (torch.stack(parts) for parts in zip(*outputs, strict=True))
        return code, prefix, spatial

    def one(self, image: Tensor, count: int | None, early: bool) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = image.shape[1] // PATCH, image.shape[2] // PATCH
        whole = rows, columns
        pixels = [image[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].flatten() for y in range(rows) for x in range(columns)]
        table = self.patch_generator.pos_embed[0].T.reshape(1, DIM, SIDE, SIDE)
        longer = max(rows, columns)
        positions = F.interpolate(table, (longer, longer), mode="bilinear", align_corners=False)[0, :, :rows, :columns].flatten(1).T
        prefix, patches = self.patch_generator.cls_token.token, self.patch_generator.embedder(torch.stack(pixels)) + positions
        most = rows * columns // 4 ** len(self.merges)
        kept = most if count is None else min(count, most)
        for number, block in enumerate(self.blocks):
            if number in self.merges:
                level = self.merges.index(number)
                patches, rows, columns = self.merged(patches, rows, columns, self.downscale_blocks[level])
                prefix = self.prefix_proj_blocks[level](prefix)
            elif early and number > self.merges[-1]:
                patches = patches[: len(patches) - (len(patches) - kept) // (DEPTH - number)]
            tokens = block(torch.cat([prefix, patches])[None])[0]
            prefix, patches = tokens[:4], tokens[4:]
        code, decoder = patches[:kept], self.decoder
        square = decoder.filler_tokens.reshape(1, self.filler_side, self.filler_side, -1).permute(0, 3, 1, 2)
        fillers = F.interpolate(square, (rows, columns), mode="bilinear", align_corners=False)[0].flatten(1).T
        prefix, patches = decoder.prefix_tokens, torch.cat([code, fillers[kept:]])
        for number, block in enumerate(decoder.blocks):
            if number in self.splits:
                level = self.splits.index(number)
                patches, rows, columns = self.parted(patches, rows, columns, decoder.upscale_blocks[level])
                prefix = decoder.prefix_proj_blocks[level](prefix)
            tokens = block(torch.cat([prefix, patches])[None])[0]
            prefix, patches = tokens[:4], tokens[4:]
        spatial = decoder.norm(patches).reshape(rows, columns, -1)[: whole[0], : whole[1]]
        return code, decoder.norm(prefix), spatial

    @staticmethod
    def merged(patches: Tensor, rows: int, columns: int, merge: nn.Module) -> tuple[Tensor, int, int]:
        def at(y: int, x: int) -> Tensor:
            return patches[y * columns + x] if y < rows and x < columns else torch.zeros_like(patches[0])

        joined = [
            torch.cat([at(2 * y, 2 * x), at(2 * y + 1, 2 * x), at(2 * y, 2 * x + 1), at(2 * y + 1, 2 * x + 1)])
            for y in range((rows + 1) // 2)
            for x in range((columns + 1) // 2)
        ]
        return merge.reduction(merge.norm(torch.stack(joined))), (rows + 1) // 2, (columns + 1) // 2

    @staticmethod
    def parted(patches: Tensor, rows: int, columns: int, split: nn.Module) -> tuple[Tensor, int, int]:
        wide = split.expansion(patches).reshape(rows, columns, 4, -1)
        square = torch.stack([torch.stack([wide[y // 2, x // 2, y % 2 * 2 + x % 2] for x in range(2 * columns)]) for y in range(2 * rows)])
        return split.norm(square).flatten(0, 1), 2 * rows, 2 * columns


def official(tmp_path: Path, reference: nn.Module, changes: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A file in the official layout, with what the published class keeps beside its weights."""
    state = {f"base_model.{key}": tensor for key, tensor in reference.state_dict().items()}
    state |= {"base_model._iter_count": torch.tensor(7), "base_model.dynamic_rate_vec": torch.randn(DIM)}
    state |= {
        "input_conditioner.norm_mean": torch.tensor(CLIP_MEAN).view(3, 1, 1),
        "input_conditioner.norm_std": torch.tensor(CLIP_STD).view(3, 1, 1),
    }
    kwargs = {**SHAPE, **LEVELS, "cpe_max_size": SIDE * PATCH, "num_cls_tokens": 3, "num_registers": 1} | (changes or {})
    kwargs = {key: value for key, value in kwargs.items() if value != "absent"}
    arguments = {
        "model": "radio1d_large_patch16_224",
        "model_kwargs": kwargs,
        "teachers": TEACHERS,
        "cpe_max_size": SIDE * PATCH,
    } | settings
    path = tmp_path / "radio1d.pth.tar"
    torch.save({"arch": "a", "epoch": 1, "args": argparse.Namespace(**arguments), "state_dict": state}, path)
    return path


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def compare(model: amradio.Model, reference: Reference, count: int | None, early: bool, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    model.set_tokens(count)
    with torch.no_grad():
        code, prefix, spatial = reference(normalised(images), count, early)
        features = model(images)
        torch.testing.assert_close(model.code(images), code, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(features.spatial, spatial, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(features.summary, prefix[:, :1].flatten(1), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    "levels", [LEVELS, {"downscale_levels": [1, 3], "decoder_depth": 3, "decoder_upscale_levels": [0, 2]}], ids=["once", "twice"]
)
def test_an_official_file_computes_what_its_description_says(tmp_path: Path, levels: dict[str, Any], early: bool) -> None:
    torch.manual_seed(0)
    reference = Reference(levels["downscale_levels"], levels["decoder_upscale_levels"], levels["decoder_depth"]).eval()
    model = amradio.load(official(tmp_path, reference, levels | {"progressive_reduction": early}))
    assert model.config.student.type == "radio1d"
    assert model.num_summaries == 2
    sizes = [(64, 96), (72, 56)] if len(levels["downscale_levels"]) == 1 else [(64, 96), (56, 88)]  # the second: odd grids
    for size in sizes:
        for count in (None, 5, 1):
            compare(model, reference, count, early, size)


def test_the_usual_splits_and_a_file_made_for_another_image_size(tmp_path: Path) -> None:
    torch.manual_seed(1)
    reference = Reference([2], [2], 5, filler_side=4).eval()
    changes = {"downscale_levels": [2], "decoder_depth": 5, "decoder_upscale_levels": "absent", "img_size": 64}
    model = amradio.load(official(tmp_path, reference, changes))
    compare(model, reference, None, False, (64, 64))  # fillers are read one to one
    compare(model, reference, 3, False, (64, 40))


def test_fewer_tokens_are_the_first_of_more_and_the_map_keeps_its_size(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = amradio.load(official(tmp_path, Reference([3], [2], 4).eval()))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        every, whole = model.code(images), model(images)
        model.set_tokens(3)
        few, part = model.code(images), model(images)
    assert (every.shape, few.shape) == ((1, 16, 2 * DIM), (1, 3, 2 * DIM))
    assert torch.equal(every[:, :3], few)
    assert part.spatial.shape == whole.spatial.shape == (1, 8, 8, DIM)
    assert not torch.allclose(part.spatial, whole.spatial)
    model.set_tokens(16)
    torch.testing.assert_close(model(images).spatial, whole.spatial, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"downscale_levels": "absent"}, {}, "downscale_levels: found None"),
        ({"downscale_levels": ["three"]}, {}, "downscale_levels: found"),
        ({"qk_norm": True}, {}, "qk_norm: not known here"),
        ({"downscale_levels": [9]}, {}, r"merge_before \[9\] are not ascending numbers of blocks from 0 to 4"),
        ({"decoder_upscale_levels": [1, 2]}, {}, "differ in length"),
        ({"cpe_max_size": 224}, {}, "cropped|crops"),
        ({}, {"model": "radio1d_tiny_patch16_224"}, "of RADIO1D there is: large, so400m, huge"),
        ({"decoder_depth": 6}, {}, "decoder"),
        ({"embed_dim": 48, "num_heads": 4}, {}, "radio1d.pth.tar"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        amradio.load(official(tmp_path, Reference([3], [2], 4), changes, **settings))


def test_it_goes_through_our_folder_and_is_refused_where_there_is_no_room(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = amradio.load(official(tmp_path, Reference([3], [2], 4).eval()))
    amradio.export(tmp_path / "radio1d.pth.tar", "amradio", tmp_path / "folder")
    again = amradio.load(tmp_path / "folder")
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(again(images).spatial, model(images).spatial)
    for name, ending in (("torchhub", ".pth.tar"), ("hf", ""), ("transformers", ""), ("timm", ".safetensors")):
        with pytest.raises(UserError, match="radio1d"):
            amradio.export(tmp_path / "folder", name, tmp_path / f"out{ending}")


def test_tokens_are_asked_of_a_radio1d_alone(tmp_path: Path) -> None:
    model = amradio.load(official(tmp_path, Reference([3], [2], 4).eval()))
    for count in (0, -1, True, 2.5):
        with pytest.raises(UserError, match="num_tokens"):
            model.set_tokens(count)  # type: ignore[arg-type]
    other = amradio.load("embedded/quickstart")
    other.set_tokens(None)
    for wrong in (lambda: other.set_tokens(4), lambda: other.code(torch.rand(1, 3, 64, 64))):
        with pytest.raises(UserError, match="'radio1d'"):
            wrong()


def test_training_keeps_another_number_for_each_sample() -> None:
    torch.manual_seed(4)
    settings = Radio1dSettings(
        dim=32, depth=4, num_heads=4, patch_size=8, max_image_size=96, decoder_depth=2, position_dropout=0, viewport=False
    )
    student = settings.build(2)
    images, draws = torch.rand(1, 3, 64, 64).expand(6, -1, -1, -1), torch.rand(6, 8)
    student.train()
    first, second = student(images, draws), student(images, draws)
    assert torch.equal(first.spatial, second.spatial)
    counts = student._counts((8, 8), draws)
    assert len(set(counts.tolist())) > 1
    student.eval()
    for number, count in enumerate(counts.tolist()):
        student.num_tokens = count
        torch.testing.assert_close(student(images[:1]).spatial[0], first.spatial[number], rtol=1e-4, atol=1e-5)
    (first.spatial.square().mean() + first.summary.square().mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in student.parameters())
    drawn = student._counts((8, 8), torch.rand(4000, 8, generator=torch.Generator().manual_seed(0)))
    assert drawn.min() == 1
    assert drawn.max() == 16
    assert abs(drawn.double().mean().item() - 8.5) < 0.3  # uniform


@pytest.mark.slow
def test_the_published_size_is_known_and_training_goes_on_from_a_file(tmp_path: Path) -> None:
    huge = Radio1dSettings(size="huge", num_registers=6)
    assert (huge.merges(), huge.splits(), huge.encoded_shape()) == ((24,), (3,), (2560, 32, 32, 10240))
    torch.manual_seed(5)
    path = official(tmp_path, Reference([3], [2], 4), model="radio1d_huge_patch16_224")
    words = ("teachers.dino=null", "teachers.sam=null", "stages.0.steps=2", "stages.0.partitions.0.image_size=64", "evaluate.every=null")
    few = ("stages.0.partitions.0.batch_size=2", "normalize.batches=2", "engine.prepare_ahead=false", "optimizer.warmup_steps=1")
    amradio.distill(Recipe.load("quickstart", f"student={{type: model, path: {path}}}", *words, *few, f"out={tmp_path / 'run'}"))
    trained = amradio.load(tmp_path / "run")
    assert trained.config.student.type == "radio1d"
    assert trained.heads == ("clip",)
    assert trained.code(torch.rand(1, 3, 64, 64)).shape == (1, 16, 2 * DIM)


def test_the_folder_on_the_hub_is_read_as_the_file_is(tmp_path: Path) -> None:
    """`nvidia/C-RADIOv4-1D-H` is a folder of the remote-code class, with its summary tokens stated."""
    torch.manual_seed(6)
    reference = Reference([3], [2], 4).eval()
    hub = amradio.load(official(tmp_path, reference))
    content = torch.load(tmp_path / "radio1d.pth.tar", weights_only=False)
    names = {"base_model.": "radio_model.model.", "input_conditioner.": "radio_model.input_conditioner."}
    state = {
        names[start] + key.removeprefix(start): t.contiguous()
        for key, t in content["state_dict"].items()
        for start in names
        if key.startswith(start)
    }
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(state | {"radio_model.summary_idxs": torch.tensor([0, 1])}, folder / "model.safetensors")
    config = {"args": vars(content["args"]), "architectures": ["RADIOModel"], "preferred_resolution": [64, 64], "patch_size": PATCH}
    (folder / "config.json").write_text(json.dumps(config))
    model = amradio.load(folder)
    images = torch.rand(1, 3, 64, 48)
    for count in (None, 4):
        model.set_tokens(count)
        hub.set_tokens(count)
        assert torch.equal(model(images).spatial, hub(images).spatial)
        assert torch.equal(model(images).summary[:, :DIM], hub(images).summary)
    assert model.summary_dim == 2 * DIM
    assert model.image_size == 64
