"""E-RADIO against published-layout fixtures, the slow form and the published sizes; deployment, precision, compilation, training."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amradio.config import Settings, one_of, to_yaml, validate
from amradio.errors import UserError
from amradio.features import Features
from amradio.students.eradio import Eradio, optimal_window
from amradio.students.eradio_attention import AttentionBlock, AttentionStage, BlockShape, PositionBias, cut, join, make_window
from amradio.students.eradio_published import own_weights, published_weights, settings_from
from amradio.students.eradio_settings import SIZES, EradioSettings
from amradio.students.finetuning import merged
from amradio.students.settings import LastBlocksSettings, LoraSettings
from amradio.yaml12 import parse_yaml

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
TINY = {"dim": 8, "stem_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [2, 4], "neck_dim": 24, "cpb_hidden_dim": 16}
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the interoperability fixtures are not beside this checkout")
each_fixture = pytest.mark.parametrize("name", ["large", "tiny8x"])


def make(num_summaries: int = 1, **changes: object) -> Eradio:
    """A tiny E-RADIO in evaluation, all of whose weights and running statistics matter."""
    torch.manual_seed(0)
    student = EradioSettings.model_validate({**TINY, **changes}).build(num_summaries)
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith(("weight", "running_var")) else torch.randn_like(tensor) * 0.2)
            elif "attention_blocks" in name:
                tensor.mul_(5)
    return student.eval()


def images(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def fixture(name: str) -> tuple[dict[str, Tensor], dict]:
    return tuple(torch.load(FIXTURES / f"eradio_{name}.{what}.pt", weights_only=True) for what in ("state", "expected"))  # type: ignore[return-value]


def from_fixture(weights: dict[str, Tensor]) -> Eradio:
    student = settings_from(weights).build(num_summaries=1)
    student.load_state_dict(own_weights(weights, student))
    student.mean.zero_()  # the fixtures are of images in [0, 1]
    student.std.fill_(1)
    return student.eval()


def close(found: Features, expected: dict[str, Tensor], atol: float = 1e-4) -> None:
    torch.testing.assert_close(found.spatial, expected["features"].permute(0, 2, 3, 1), rtol=0, atol=atol)
    torch.testing.assert_close(found.summary, expected["summary"], rtol=0, atol=atol)


@pytest.mark.slow
@needs_fixtures
@each_fixture
@pytest.mark.parametrize("deployed", [False, True])
@torch.no_grad()
def test_equals_the_published_layout(name: str, deployed: bool):
    weights, expected = fixture(name)
    student = from_fixture(weights)
    if deployed:
        student.deploy()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in student.modules())
    assert len(expected["cases"]) == 4
    for case in expected["cases"].values():
        given = case["image_u8"].float() / 255
        student.windows = student.windows._replace(rule="fixed")
        assert student.window_for(*given.shape[2:]) == 8
        close(student(given), case)
        norm = [weights[f"norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        torch.testing.assert_close(F.batch_norm(student.trunk(given), *norm), case["trunk"], rtol=0, atol=1e-4)
        assert [list(x.shape) for x in student.stages(given)] == case["stage_pre_downsample_shapes"]
        student.windows = student.windows._replace(rule="optimal")
        assert student.window_for(*given.shape[2:]) == case["optimal_window"]["window_size"]
        close(student(given), case["optimal_window"])


@needs_fixtures
@each_fixture
def test_official_names_and_shapes(name: str):
    weights, expected = fixture(name)
    settings = settings_from(weights)
    config = expected["config"]
    assert (settings.dim, settings.stem_dim, list(settings.depths)) == (config["dim"], config["in_dim"], config["depths"])
    assert list(settings.num_heads) == config["num_heads"][2:]
    assert settings.window_size == config["window_size"][3]
    assert settings.subsampling == ("conv" if config.get("conv_base") else "pool")
    assert settings.depthwise == (config.get("conv_groups_ratio", 0) == 1)
    assert settings.cpb_hidden_dim == config.get("cpb_mlp_hidden", 512)
    assert (settings.neck, settings.neck_start, settings.neck_dim) == (True, config["neck_start_stage"], config["full_features_head_dim"])
    written = published_weights(from_fixture(weights))
    alive = {key: tensor for key, tensor in weights.items() if not key.startswith("norm.")}
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in written.items()} == {k: (t.shape, t.dtype) for k, t in alive.items()}
    for key in alive:
        if not key.endswith("relative_bias"):
            torch.testing.assert_close(written[key], weights[key], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_settings_of_a_size_are_found_from_its_shapes(size: str):
    with torch.device("meta"):
        for neck in (True, False):
            settings = EradioSettings.model_validate({"size": size, "neck": neck, "window": "fixed"})
            assert settings_from(published_weights(settings.build(1))) == settings


def test_foreign_weights_are_refused():
    with pytest.raises(UserError, match=r"not the weights of an E-RADIO: there is no patch_embed.*give an official"):
        settings_from({"blocks.0.norm1.weight": torch.zeros(3)})


def million(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.slow
def test_parameters_of_the_published_sizes():
    with torch.device("meta"):
        students = {size: EradioSettings.model_validate({"size": size}).build(1) for size in SIZES}
        bare = {size: EradioSettings.model_validate({"size": size, "neck": False}).build(1) for size in SIZES}
    for size, published in {"large": 389.6, "xxxtiny": 10.26, "xxxtiny_8x_ws12": 6.26, "xxxtiny_8x_ws16": 6.28}.items():
        assert million(students[size]) == pytest.approx(published, rel=0.002)
    parts = students["large"]
    found = [million(part) for part in (parts.patch_embed, *parts.levels, parts.high_res_neck)]
    assert found == pytest.approx([0.11, 1.3, 5.2, 131.6, 247.8, 3.6], abs=0.05)
    assert million(bare["base"]) == pytest.approx(113, rel=0.01)  # AM-RADIO, table 7, without up-sampling
    widths = {size: student.levels[0].blocks.cv2.conv.out_channels for size, student in students.items()}
    assert widths == {
        "xxxtiny": 32,
        "xxxtiny_8x_ws12": 32,
        "xxxtiny_8x_ws16": 32,
        "xtiny": 64,
        "tiny": 80,
        "small": 96,
        "base": 128,
        "large": 192,
    }
    assert {student.patch_size for size, student in students.items() if size != "xxxtiny_8x_ws16"} == {16}
    assert (students["xxxtiny_8x_ws16"].patch_size, {student.patch_size for student in bare.values()}) == (8, {32})


@pytest.mark.parametrize("changes", [{}, {"subsampling": "pool", "depthwise": True}, {"neck": False, "neck_dim": None}, {"neck_start": 0}])
@torch.no_grad()
def test_deploy_changes_rounding_only(changes: dict):
    student = make(3, summaries="per_teacher", **changes)
    student.summary_queries.normal_()
    given = images(64, 96)
    before = student(given)
    deployed = copy.deepcopy(student).deploy()
    after = deployed(given)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    norms = [name for name, module in deployed.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == ([] if student.high_res_neck else ["norm"])
    torch.testing.assert_close(deployed.deploy()(given), after, rtol=0, atol=0)


@pytest.mark.slow
@torch.no_grad()
def test_no_position_bias_is_stale():
    """In evaluation the bias is kept; whatever changes the weights, the window or its unit makes it anew."""
    student, given = make(window="optimal"), images(64, 64)
    bias = student.levels[3].blocks[0].attention_blocks[0].attn.pos_emb_funct
    student(given)
    kept = bias._kept[1]
    first = student(given).spatial
    assert bias._kept[1] is kept
    student(images(96, 96))
    torch.testing.assert_close(student(given).spatial, first, rtol=0, atol=0)
    for change in (
        lambda: student.state_dict()["levels.3.blocks.0.attention_blocks.0.attn.pos_emb_funct.cpb_mlp.2.weight"].lerp_(torch.ones(()), 0.5),
        lambda: student.load_state_dict(make(neck_start=2).state_dict()),
        lambda: setattr(student, "windows", student.windows._replace(size=4)),
    ):
        change()
        fresh = copy.deepcopy(student)
        for module in fresh.modules():
            if isinstance(module, PositionBias):
                module._kept = None
        assert not torch.equal(student(given).spatial, first)
        first = student(given).spatial
        torch.testing.assert_close(first, fresh(given).spatial, rtol=0, atol=0)
    assert student.double()(given.double()).spatial.dtype == torch.float64
    with torch.inference_mode():
        made_here = make()
        torch.testing.assert_close(made_here(given).spatial, make()(given).spatial)


def slow_block(block: AttentionBlock, x: Tensor, size: int, unit: int) -> Tensor:
    """One local block over a map [C, H, W], cell by cell."""
    bias = block.attn.pos_emb_funct.cpb_mlp
    given = x
    x = x + block.pre_conv(x[None])[0]
    C, H, W = x.shape
    answer = x.clone()
    heads = block.attn.num_heads
    for top in range(0, H, size):
        for left in range(0, W, size):
            places = [(top + i, left + j) for i in range(size) for j in range(size)]
            cells = torch.stack([x[:, i, j] for i, j in places])
            q, k, v = block.attn.qkv(block.norm1(cells)).chunk(3, -1)
            joined = []
            for h in range(heads):
                part = slice(h * C // heads, (h + 1) * C // heads)
                logits = q[:, part] @ k[:, part].T / math.sqrt(C // heads)
                for a, (i, j) in enumerate(places):
                    for b, (m, n) in enumerate(places):
                        offset = torch.tensor([(i - m) * 8 / (unit - 1), (j - n) * 8 / (unit - 1)])
                        logits[a, b] += 16 * bias(offset.sign() * torch.log2(offset.abs() + 1) / 3).sigmoid()[h]
                joined.append(logits.softmax(-1) @ v[:, part])
            cells = cells + block.attn.proj(torch.cat(joined, -1))
            cells = cells + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(cells))))
            for place, cell in zip(places, cells, strict=True):
                answer[:, place[0], place[1]] = cell
    return (answer + given) / 2


@pytest.mark.parametrize("fused", [True, False])
def test_a_local_block_equals_the_slow_form(fused: bool):
    student = make()
    student.fuse_attention(fused)
    block = student.levels[2].blocks[1].attention_blocks[1]
    x = torch.randn(1, 32, 4, 6, generator=torch.Generator().manual_seed(3)).requires_grad_()
    found, expected = block(x, make_window(2, 16))[0], slow_block(block, x[0], 2, 16)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    mine = torch.autograd.grad((found * weight).sum(), [x, *block.parameters()])
    theirs = torch.autograd.grad((expected * weight).sum(), [x, *block.parameters()])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_windows_are_cut_and_joined():
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    windows = cut(x, 2)
    assert windows.shape == (2 * 2 * 3, 4, 3)
    assert torch.equal(windows[4], x[0, :, 2:4, 2:4].flatten(1).T)
    assert torch.equal(join(windows, 2, x.shape), x)


@torch.no_grad()
def test_a_map_that_fits_is_not_stretched(monkeypatch: pytest.MonkeyPatch):
    stage = AttentionStage(BlockShape(8, 2, 16, "conv", False), 1, has_global=True).eval()
    sizes: list = []
    stretch = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, size, mode: sizes.append(tuple(size)) or stretch(x, size, mode=mode))
    stage(torch.rand(1, 8, 8, 12), make_window(2, 16))
    assert sizes == []
    assert stage(torch.rand(1, 8, 6, 9), make_window(2, 16)).shape == (1, 8, 6, 9)
    assert sizes == [(8, 12), (6, 9)]


def test_optimal_windows():
    published = {224: 7, 256: 8, 384: 12, 512: 16, 32: 1, 96: 3, 432: 13, 768: 12, 1024: 16}
    assert {px: optimal_window(px // 32) for px in published} == published
    assert [optimal_window(side) for side in (17, 19, 23, 25, 34, 37)] == [9, 10, 12, 13, 12, 13]  # the largest divisors: 1, 1, 1, 5, 2, 1
    assert all(7 <= optimal_window(side) <= 16 for side in range(7, 200))
    student = make(window="optimal")
    assert (student.window_for(224, 512), student.window_for(512, 224)) == (7, 7)


def test_sizes_that_are_no_multiples_of_32_are_refused():
    student = make()
    for height, width, legal in ((100, 250, "96x256"), (10, 32, "32x32"), (224, 230, "224x224")):
        with pytest.raises(UserError, match=f"{height}x{width} px is not a size.*nearest is {legal} px"):
            student(torch.rand(1, 3, height, width))
    with pytest.raises(UserError, match=r"found shape \(3, 32, 32\); give \[B, 3, H, W\]"):
        student(torch.rand(3, 32, 32))


@pytest.mark.parametrize("changes", [{}, {"subsampling": "pool", "depthwise": True, "neck_start": 1}, {"neck": False, "neck_dim": None}])
def test_gradients_reach_every_parameter(changes: dict):
    student = make(2, summaries="per_teacher", **changes).train()
    found = student(images(64, 96))
    weight = torch.randn(found.spatial.shape, generator=torch.Generator().manual_seed(5))
    ((found.spatial * weight).sum() + found.summary.square().sum()).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_summaries():
    shared = make(3)
    found = shared(images(64, 64))
    assert (shared.num_summaries, shared.summary_dim, found.summary.shape) == (1, 24, (2, 24))
    torch.testing.assert_close(found.summary, found.spatial.mean((1, 2)))
    each = make(3, summaries="per_teacher")
    torch.testing.assert_close(each(images(64, 64)).summary, found.summary.repeat(1, 3))  # queries begin at zero: the mean
    with torch.no_grad():
        each.summary_queries[1] = torch.randn(24, generator=torch.Generator().manual_seed(6)) * 3
    summaries = each(images(64, 64)).summary.unflatten(1, (3, 24))
    cells = found.spatial.flatten(1, 2)
    weights = (cells @ each.summary_queries[1] / 24**0.5).softmax(1)
    torch.testing.assert_close(summaries[:, 1], (weights[..., None] * cells).sum(1))
    torch.testing.assert_close(summaries[:, 2], found.summary)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype):
    student, given = make(3, summaries="per_teacher"), images(96, 64)
    expected = student(given)
    with torch.autocast("cpu", dtype):
        mixed = student(given)
    cast = copy.deepcopy(student).to(dtype)(given.to(dtype))
    assert cast.spatial.dtype == cast.summary.dtype == dtype
    for found in (mixed, cast):
        for kind in ("summary", "spatial"):
            cosine = F.cosine_similarity(getattr(found, kind).float(), getattr(expected, kind), dim=-1)
            assert cosine.min() > (0.999 if dtype == torch.bfloat16 else 0.9999)


@torch.no_grad()
def test_position_bias_keeps_its_precision_in_half_weights():
    bias, window = make().levels[2].blocks[0].attention_blocks[0].attn.pos_emb_funct, make_window(7, 16)
    exact = bias(window)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(bias.compute(window), exact, rtol=0, atol=1e-6)
    assert exact.dtype == torch.float32
    assert exact.shape == (1, 2, 49, 49)


@pytest.mark.slow
@pytest.mark.parametrize("deployed", [False, True])
@torch.no_grad()
def test_compiles_without_graph_breaks(deployed: bool):
    student = make(2, summaries="per_teacher", depths=[1, 1, 1, 1])
    if deployed:
        student.deploy()
    given = images(64, 96)
    compiled = torch.compile(student, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(given), student(given), rtol=1e-4, atol=1e-5)


def test_one_image_of_one_cell_is_refused_in_training():
    student = make().train()
    with pytest.raises(UserError, match=r"one of 32x32 px.*larger batch_size or image_size"):
        student(images(32, 32, batch=1))
    assert torch.isfinite(student(images(32, 32)).spatial).all()
    assert torch.isfinite(student.eval()(images(32, 32, batch=1)).spatial).all()


def test_training_moves_the_running_statistics_and_evaluation_does_not():
    student, given = make(), images(64, 64)
    before = {name: tensor.clone() for name, tensor in student.named_buffers()}
    student(given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.named_buffers())
    student.train()(given)
    moved = {name for name, tensor in student.named_buffers() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "running" in name} | {n for n in before if "tracked" in n}


@pytest.mark.parametrize(("count", "trained"), [(1, ("high_res_neck.",)), (2, ("high_res_neck.", "levels.3."))])
def test_what_stands_before_the_last_blocks_keeps_its_bits(count: int, trained: tuple[str, ...]):
    student = make(2, summaries="per_teacher")
    LastBlocksSettings(count=count).choose(student, student.blocks_in_order())
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    features = student.train()(images(96, 64))
    (features.spatial**3).sum().backward()
    assert {name for name, p in student.named_parameters() if p.grad is not None} == {n for n in before if n.startswith(trained)} & dict(
        student.named_parameters()
    ).keys()
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith(trained) and ("running" in name or "tracked" in name)}
    assert student.summary_rows == {"summary_queries": 1}
    assert student.get_parameter("summary_queries").shape == (2, 24)


def test_low_rank_additions_reach_the_output():
    student = make()
    LoraSettings(rank=2, alpha=4.0).choose(student, student.blocks_in_order())
    additions = {name: p for name, p in student.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in additions} == {"lora_a", "lora_b"}
    with torch.no_grad():
        for name, parameter in additions.items():
            if name.endswith("lora_b"):
                parameter.normal_()
    given = images(96, 64)
    (student.train()(given).spatial ** 3).sum().backward()
    assert [name for name, parameter in additions.items() if not parameter.grad.abs().sum() > 0] == []
    with torch.no_grad():
        found = student.eval()(given).spatial
        torch.testing.assert_close(merged(student)(given).spatial, found, rtol=1e-4, atol=1e-4)


class Box(Settings):
    student: one_of((EradioSettings,))  # type: ignore[valid-type]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"num_heads": [3, 16]}, "student: num_heads: 3 does not divide the 512 channels of stage 2; set num_heads to divisors"),
        ({"depths": [1, 0, 2, 2]}, r"student.depths.1: should be greater than or equal to 1, found 0"),
        ({"neck": False, "neck_dim": 64}, "student: neck_dim set a neck that `neck: false` leaves out"),
        ({"dim": 7}, "student.dim: should be a multiple of 2, found 7"),
        ({"neck_start": 4}, "student.neck_start: should be less than or equal to 3, found 4"),
        ({"size": "giant"}, "student.size: should be 'xxxtiny', "),
        ({"window": 16}, "student.window: should be 'optimal' or 'fixed', found 16"),
        ({"wimdow": "fixed"}, r"student.wimdow: there is no such key; did you mean 'window'"),
    ],
)
def test_bad_settings(words: dict, problem: str):
    with pytest.raises(UserError, match=problem):
        validate(Box, {"student": {"type": "eradio", **words}})


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 16},
        {"stem_dim": 4},
        {"depths": [1, 1, 1, 1]},
        {"num_heads": [4, 4]},
        {"window": "fixed"},
        {"window_size": 8},
        {"subsampling": "conv"},
        {"depthwise": False},
        {"cpb_hidden_dim": 8},
        {"neck": False, "neck_dim": None},
        {"neck_start": 2},
        {"neck_dim": 16},
        {"summaries": "per_teacher"},
        {"size": "xxxtiny", "dim": None},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_setting_matters(change: dict):
    """Against a pooled variant, so that each override differs from the size's own."""
    base = {**TINY, "size": "xxxtiny_8x_ws16"}
    assert set(change) <= set(EradioSettings.model_fields)
    given, usual, changed = images(96, 64), make(2, **base), make(2, **(base | change))
    if usual.state_dict().keys() != changed.state_dict().keys():
        return
    shapes = [[tensor.shape for tensor in student.state_dict().values()] for student in (usual, changed)]
    assert shapes[0] != shapes[1] or not torch.equal(usual(given).spatial, changed(given).spatial)


def test_settings_survive_yaml():
    box = Box(student=EradioSettings.model_validate({**TINY, "window": "fixed"}))
    assert validate(Box, parse_yaml(to_yaml(box), "here")) == box
