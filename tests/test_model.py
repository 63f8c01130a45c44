"""What `amradio.load` returns, against the published checkpoints' expected outputs and against the slow obvious forms."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import BatchEncoding

import amradio
import tiny
from amradio.errors import UserError
from amradio.features import Features
from amradio.formats.model_folder import write_folder
from amradio.model import Model
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students.vit import Vit
from amradio.students.vit_settings import VitSettings
from amradio.students.windows import from_windows, global_blocks, to_windows
from amradio.teachers import TEACHERS, EmbeddedSettings
from amradio.teachers.from_head import settings_of
from amradio.teachers.mask_decoder import EncodedImage, MaskDecoder
from evaluations import add_tokenizer

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the interoperability fixtures are not beside this checkout")
PUBLISHED = ["idx", "name", "layerscale", "spectral", "upsample"]
SMALL = {"dim": 32, "depth": 8, "num_heads": 4, "patch_size": 8, "num_registers": 2, "max_image_size": 128}


def make(depth: int = 8, heads: dict[str, tuple[int | None, int | None, dict]] | None = None) -> Model:
    """A small ViT with heads {name: (summary dim, spatial dim, what is known of the teacher)}."""
    torch.manual_seed(0)
    config = NetworkConfig(
        student=VitSettings.model_validate({**SMALL, "depth": depth}),
        num_summaries=2,
        heads={
            name: HeadConfig(
                summary=HeadPart.model_validate({"head": "mlp", "dim": summary}) if summary else None,
                spatial=HeadPart.model_validate({"head": "mlp", "dim": spatial}) if spatial else None,
                teacher=known,
            )
            for name, (summary, spatial, known) in (heads or {"clip": (24, 32, {})}).items()
        },
        image_size=64,
    )
    network = config.build()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.mul_(5 if "blocks" in name and parameter.ndim > 1 else 1)
    return Model(config, network)


def images(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def load_fixture(name: str, **options) -> tuple[Model, dict]:
    expected = torch.load(FIXTURES / f"{name}.expected.pt", weights_only=True)
    return amradio.load(FIXTURES / f"{name}.pth.tar", **options), expected


def assert_equal(found: Features, expected: dict[str, Tensor], atol: float = 1e-4) -> None:
    torch.testing.assert_close(found.spatial.flatten(1, 2), expected["features"], rtol=0, atol=atol)
    torch.testing.assert_close(found.summary, expected["summary"], rtol=0, atol=atol)


@needs_fixtures
@pytest.mark.parametrize("name", PUBLISHED)
def test_intermediates_equal_the_published_ones(name: str) -> None:
    model, expected = load_fixture(name)
    ours = {"sparse_nlc": "sparse", "sparse_norm": "sparse", "dense_none": "dense", "dense_pre": "dense", "dense_post": "dense"}
    for key, aggregation in ours.items():  # without an intermediate normaliser its alphas are 1 and the three dense ones are the same
        found = model.intermediates(expected["x"], expected["inter_indices"], aggregation=aggregation)
        for one, theirs in zip(found, expected[f"inter_{key}"], strict=True):
            assert_equal(one, theirs)
    for one, theirs in zip(model.intermediates(expected["x"], 2), expected["inter_last2"]["inter"], strict=True):
        torch.testing.assert_close(one.spatial.flatten(1, 2), theirs, rtol=0, atol=1e-4)


@needs_fixtures
@pytest.mark.parametrize("name", PUBLISHED)
def test_properties_are_the_published_ones(name: str) -> None:
    model, expected = load_fixture(name)
    props = expected["props"]
    assert model.patch_size == props["patch_size"]
    assert model.min_resolution_step == props["min_resolution_step"]
    assert model.window_size == props["window_size"]
    assert model.num_summaries == props["num_cls_tokens"]
    assert model.network.student.num_prefix == props["num_summary_tokens"]
    assert model.spatial_dim == props["embed_dim"]
    assert model.summary_dim == props["summary_dim"]
    assert list(model.nearest_size(100, 53)) == props["nearest_100_53"]
    assert model.dtype == torch.float32
    assert model.device.type == "cpu"


def test_all_blocks_by_default_negative_ones_from_the_end_and_the_last_n() -> None:
    model, seen = make(depth=4), images(40, 64)
    every = model.intermediates(seen)
    assert len(every) == 4
    torch.testing.assert_close(every[-1].spatial, model(seen).spatial, rtol=0, atol=0)
    for found, expected in (
        (model.intermediates(seen, [-1, 0, -1]), [every[3], every[0], every[3]]),
        (model.intermediates(seen, 2), every[2:]),
        (model.intermediates(seen, iter([1])), [every[1]]),
    ):
        for one, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(one.summary, theirs.summary, rtol=0, atol=0)
            torch.testing.assert_close(one.spatial, theirs.spatial, rtol=0, atol=0)


def test_dense_is_the_mean_since_the_last_block_asked_for_in_any_order() -> None:
    model, seen = make(depth=5), images(40, 64)
    every = model.intermediates(seen)
    late, early = model.intermediates(seen, [4, 1], aggregation="dense")
    for found, members in ((early, every[:2]), (late, every[2:])):
        torch.testing.assert_close(found.spatial, torch.stack([one.spatial for one in members]).mean(0))
        torch.testing.assert_close(found.summary, torch.stack([one.summary for one in members]).mean(0))


def test_prefix_tokens_are_the_summaries_and_the_registers() -> None:
    model, seen = make(), images(40, 64)
    plain = model.intermediates(seen, [2, 7])
    for (features, prefix), expected in zip(model.intermediates(seen, [2, 7], prefix=True), plain, strict=True):
        assert prefix.shape == (2, 4, 32)
        torch.testing.assert_close(prefix[:, :2].flatten(1), expected.summary, rtol=0, atol=0)
        torch.testing.assert_close(features.spatial, expected.spatial, rtol=0, atol=0)


def test_the_published_rule_of_global_blocks() -> None:
    rules = {
        (12, 4, None): {2, 5, 8, 11},
        (24, 4, None): {5, 11, 17, 23},
        (32, 4, None): {7, 15, 23, 31},
        (32, 4, 5): {5, 11, 17, 23, 29, 31},
        (40, 8, None): {4, 9, 14, 19, 24, 29, 34, 39},
        (27, 4, None): {5, 11, 17, 23, 26},
    }
    for (depth, num_global, num_windowed), expected in rules.items():
        assert global_blocks(depth, num_global, num_windowed) == expected
    for wrong in ((4, 4, None), (12, 0, 0), (3, 4, None)):
        with pytest.raises(UserError, match="blocks would be global"):
            global_blocks(*wrong)


def slow_windows(vit: Vit, seen: Tensor, size: int, whole: set[int]) -> Tensor:
    """Tokens after all blocks, window after window: each is cut out of the map, run alone, and put back."""
    tokens, (rows, columns) = vit._tokens(seen, None)
    prefix, grid = tokens[:, : vit.num_prefix], tokens[:, vit.num_prefix :].unflatten(1, (rows, columns)).clone()
    for number, block in enumerate(vit.blocks):
        if number in whole:
            tokens = block(torch.cat([prefix, grid.flatten(1, 2)], 1))
            prefix, grid = tokens[:, : vit.num_prefix], tokens[:, vit.num_prefix :].unflatten(1, (rows, columns)).clone()
            continue
        for y in range(0, rows, size):
            for x in range(0, columns, size):
                window = grid[:, y : y + size, x : x + size]
                grid[:, y : y + size, x : x + size] = block(window.flatten(1, 2)).unflatten(1, (size, size))
    return torch.cat([prefix, grid.flatten(1, 2)], 1)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rule"), [(1, {}), (2, {}), (4, {"num_global": 2}), (2, {"num_windowed": 5}), (8, {})])
@torch.no_grad()
def test_windows_equal_the_slow_form(size: int, rule: dict[str, int]) -> None:
    model = make()
    seen = images(64, 128)
    without = model(seen)
    model.set_windows(size, **rule)
    tokens = slow_windows(model.network.student, seen, size, set(global_blocks(8, **rule)))
    found = model(seen)
    torch.testing.assert_close(found.summary, tokens[:, :2].flatten(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.spatial.flatten(1, 2), tokens[:, 4:], rtol=0, atol=1e-5)
    assert (found.spatial - without.spatial).abs().max() > 0.01  # also where one window covers the rows: the prefix is set aside
    last, prefix = model.intermediates(seen, [-1], prefix=True)[0]
    torch.testing.assert_close(last.spatial, found.spatial, rtol=0, atol=0)
    torch.testing.assert_close(prefix, tokens[:, :4], rtol=0, atol=1e-5)
    model.set_windows(None)
    torch.testing.assert_close(model(seen).spatial, without.spatial, rtol=0, atol=0)


def test_window_order_is_undone_and_rows_of_a_window_stand_together() -> None:
    places = torch.arange(4 * 6).float().reshape(1, 24, 1)
    ordered = to_windows(places, (4, 6), 2)
    assert ordered[0, :8, 0].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]
    assert torch.equal(from_windows(ordered, (4, 6), 2), places)


def test_sizes_go_in_steps_of_the_window() -> None:
    model = make()
    model.set_windows(4)
    assert (model.window_size, model.min_resolution_step) == (4, 32)
    assert model.nearest_size(100, 53) == (96, 64)
    with pytest.raises(UserError, match="96x56 px is not a size this student takes; the nearest is 96x64 px"):
        model(images(96, 56))
    with pytest.raises(UserError, match="window_size 0"):
        model.set_windows(0)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype_of_weights_and_features(dtype: str | torch.dtype, tmp_path: Path) -> None:
    model, seen = make(), images(40, 64)
    write_folder(tmp_path, model.config, model.network, {"step": 1, "num_steps": 1, "data": "nothing"})
    low, wanted = amradio.load(tmp_path, dtype=dtype), getattr(torch, str(dtype).removeprefix("torch."))
    found = low(seen, heads=["clip"])
    for features, reference in zip(found.values(), model(seen, heads=["clip"]).values(), strict=True):
        assert features.summary.dtype == features.spatial.dtype == wanted
        assert F.cosine_similarity(features.spatial.float(), reference.spatial, dim=-1).min() > 0.98
    student = low.network.student
    assert low.dtype == wanted
    assert student.mean.dtype == student.std.dtype == torch.float32
    torch.testing.assert_close(low(seen.to(wanted)).spatial.float(), found["backbone"].spatial.float(), rtol=0.1, atol=0.5)
    torch.testing.assert_close(model.to(wanted).network.student.mean, student.mean, rtol=0, atol=0)


@pytest.mark.slow
def test_options_of_load(tmp_path: Path) -> None:
    model, seen = make(), images(40, 72)
    write_folder(tmp_path, model.config, model.network, {"step": 1, "num_steps": 1, "data": "nothing"})
    stretched = amradio.load(tmp_path, align_corners=True)
    assert stretched.config.student.align_corners
    assert (stretched(seen).spatial - model(seen).spatial).abs().max() > 0.01
    assert amradio.load(tmp_path, window_size=2).window_size == 2
    assert amradio.load(tmp_path).ignored_keys == ()
    with pytest.raises(UserError, match="dtype: found 'int8'; there is: float32, bfloat16, float16"):
        amradio.load(tmp_path, dtype="int8")


@pytest.mark.slow
def test_wrong_options_for_a_student_are_one_error(tmp_path: Path) -> None:
    model = make(depth=4)
    write_folder(tmp_path, model.config, model.network, {"step": 1, "num_steps": 1, "data": "nothing"})
    with pytest.raises(UserError, match="every one of 4 blocks would be global"):
        amradio.load(tmp_path, window_size=2)
    config = NetworkConfig.model_validate({"student": {"type": "eradio", "size": "xxxtiny"}, "num_summaries": 1})
    write_folder(tmp_path / "eradio", config, config.build(), {"step": 1, "num_steps": 1, "data": "nothing"})
    with pytest.raises(UserError) as error:
        amradio.load(tmp_path / "eradio", window_size=2, align_corners=True)
    assert len(error.value.problems) == 2
    plain = amradio.load(tmp_path / "eradio")
    for call, message in (
        (lambda: plain.pack([images(64, 64)[0]]), "one size at a time"),
        (lambda: plain.intermediates(images(64, 64)), "none"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.slow
def test_one_compiled_graph_serves_many_sizes() -> None:
    model, counter = make(depth=1), CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for size in ((40, 64), (64, 96), (24, 88), (48, 56)):
        torch.testing.assert_close(compiled(images(*size)).spatial, model(images(*size)).spatial, rtol=0, atol=0)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_external_preprocessing() -> None:
    model, seen = make(), images(40, 64)
    expected = model(seen).spatial
    conditioner = model.external_preprocessing()
    normalised = conditioner(seen)
    torch.testing.assert_close(
        normalised.mean(), ((seen - torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)) / conditioner.std).mean()
    )
    torch.testing.assert_close(model(normalised).spatial, expected, rtol=0, atol=0)
    assert (model(seen).spatial - expected).abs().max() > 0.01
    torch.testing.assert_close(conditioner.inverse(normalised), seen)
    assert torch.equal(model.external_preprocessing()(seen), seen)


def test_a_pack_equals_its_images_one_by_one() -> None:
    model = make(heads={"clip": (24, None, {}), "dino": (16, 32, {})})
    several = [images(height, width, 1)[0] for height, width in ((40, 64), (8, 8), (64, 40), (128, 24), (64, 64))] + [images(40, 64)[1]]
    for image, found, alone in zip(several, model.pack(several, heads=["clip", "dino"]), model.pack(several), strict=True):
        expected = model(image[None], heads=["clip", "dino"])
        assert found.keys() == expected.keys()
        for name, features in expected.items():
            for ours, theirs in zip(found[name], features, strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(alone.summary, expected["backbone"].summary, rtol=1e-5, atol=2e-5)
    assert model.pack([]) == []


@pytest.mark.slow
@needs_fixtures
@pytest.mark.parametrize("name", ["layerscale", "upsample"])
def test_a_pack_of_a_published_model(name: str) -> None:
    model, expected = load_fixture(name)
    first, second, third = model.pack([expected["x"][0], expected["x2"][1], expected["x3"][0]], heads=model.heads)
    for head, theirs in expected["all_NLC"].items():
        assert_equal(first[head], theirs)
    assert_equal(second["backbone"], {key: value[1:] for key, value in expected["backbone2_NLC"].items()})
    assert_equal(third["backbone"], expected["backbone3_NLC"])


def test_what_cannot_be_packed_is_refused() -> None:
    model, image = make(), images(40, 64)[0]
    with pytest.raises(UserError, match=r"expected float \[3, H, W\] .*number 1"):
        model.pack([image, image[None]])
    with pytest.raises(UserError, match="41x64 px is not a size"):
        model.pack([image, images(41, 64)[0]])
    with pytest.raises(UserError, match="did you mean 'clip'"):
        model.pack([image], heads=["clp"])
    model.set_windows(1)
    with pytest.raises(UserError, match="a student with windows"):
        model.pack([image])


@pytest.fixture(scope="module")
def quickstart() -> Model:
    """A student whose heads learnt from the embedded teachers, as `amradio quickstart` writes them."""
    known = {name: {"type": "embedded", "source": f"embedded {name}", "licence": "Apache-2.0"} for name in ("clip", "dino", "sam")}
    teachers = {name: EmbeddedSettings.model_validate({"name": name}).build() for name in known}
    dims = {name: (teacher.summary_dim, teacher.spatial_dim, known[name]) for name, teacher in teachers.items()}
    return make(depth=2, heads=dims)


@pytest.mark.slow
def test_text_of_a_head_is_that_of_its_teacher(quickstart: Model) -> None:
    teacher = EmbeddedSettings(name="clip").build()
    texts = ["a red circle", "Two blue squares."]
    encoder = quickstart.text("clip")
    found = encoder(texts)
    torch.testing.assert_close(encoder(texts, normalize=False), teacher.encode_text(texts))
    torch.testing.assert_close(found, F.normalize(teacher.encode_text(texts), dim=1))
    torch.testing.assert_close(encoder("a red circle"), found[:1])
    summary = quickstart(images(40, 64), heads=["clip"])["clip"].summary
    assert (F.normalize(summary) @ found.T).shape == (2, 2)
    assert not found.is_inference()
    with pytest.raises(UserError, match="texts: there is none"):
        encoder([])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([3], "texts.0: expected a text, found 3"),
        (3, "texts: expected a text or a list of texts, found 3"),
        ("", "texts.0: it is empty; give at least one word"),
        (["a", " "], "texts.1: it is empty"),
        (["a\ud800"], r"texts.0: it contains half of a surrogate pair \('a\\ud800'\)"),
        ([None] * 7, "texts.4: expected a text, found null\ntexts: 2 others like these$"),
    ],
)
def test_what_is_no_text_is_refused(quickstart: Model, texts: object, message: str) -> None:
    encoder = quickstart.text("clip")
    for call in (encoder, lambda wrong: encoder.map(torch.rand(1, 3, 64, 64), wrong)):
        with pytest.raises(UserError, match=message):
            call(texts)


@pytest.mark.parametrize("kind", ["clip", "open_clip", "siglip"])
def test_texts_that_are_cut_are_counted(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.BUILDERS[kind][0](tmp_path / "teacher")
    if kind != "open_clip":
        add_tokenizer(folder)
    teacher = settings_of("words", {}, str(folder)).build()
    if kind == "open_clip":  # the library's tokenizer has 49,408 words, and the tiny tower 99
        monkeypatch.setattr(teacher.model, "encode_text", lambda tokens: tokens.float())
    texts = ["a red circle", " ".join(["circle"] * 200), " ".join(["square"] * 99)]
    found = teacher.encode_text(texts)
    printed = capsys.readouterr().err
    assert f"warning: texts: 2 of 3 have more than the 16 tokens that teacher '{folder}' reads (the longest has 202)" in printed
    assert printed.count("warning") == 1
    torch.testing.assert_close(found[:1], teacher.encode_text(texts[:1]))
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("size", [("a", 5), (-5, 0), (32.5, 32), (None, 32)])
def test_the_nearest_size_of_no_size(quickstart: Model, size: tuple) -> None:
    with pytest.raises(UserError, match="nearest_size: expected height and width in px, whole numbers above 0, found"):
        quickstart.nearest_size(*size)
    assert quickstart.nearest_size(33, 1) == (32, 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "open_clip", "siglip"])
def test_text_of_a_folder_that_moved(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.BUILDERS[kind][0](tmp_path / "here")
    dim = {"clip": 24, "open_clip": 24, "siglip": 32}[kind]
    model = make(depth=1, heads={"words": (dim, 32, {"type": kind, "source": str(tmp_path / "gone")})})
    with pytest.raises(UserError, match=r"head 'words': .*; or pass teacher="):
        model.text("words")
    encoder, whole = model.text("words", teacher=folder), settings_of("words", {}, str(folder)).build()
    assert encoder.teacher.source == str(folder)
    tokens = torch.randint(1, 97, (2, 16))
    tokens[:, 12:] = 98
    words = tokens if kind == "open_clip" else BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    monkeypatch.setattr(type(whole), "tokenizer", lambda *_, **__: words)
    torch.testing.assert_close(encoder(["a", "b"], normalize=False), whole.encode_text(["a", "b"]))
    assert sum(p.numel() for p in encoder.parameters()) < 0.8 * sum(p.numel() for p in whole.parameters())
    assert model.text("words", teacher=whole).teacher is whole
    with pytest.raises(UserError, match=f"its summary has 7 channels, that of teacher '{folder}' {dim}"):
        make(depth=1, heads={"words": (7, 32, {})}).text("words", teacher=folder)


@pytest.mark.parametrize(
    ("card", "name", "message"),
    [
        ({"type": "custom", "source": "mine"}, None, "'mine' of type 'custom'"),
        ({}, None, "its kind is unknown, so it cannot be loaded"),
        ({"type": "embedded", "source": "embedded clip"}, "nowhere/at-all", "teacher 'nowhere/at-all' is not on this machine"),
        ({"type": "embedded", "source": "embedded clap"}, None, "clap"),
    ],
)
def test_a_teacher_that_cannot_be_found(card: dict, name: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_of("clip", card, name)


def test_cards_lead_to_the_settings_of_every_kind() -> None:
    cards = {
        "clip": "openai/clip-vit-large-patch14",
        "open_clip": "ViT-H-14 laion2b_s32b_b79k",
        "siglip": "google/siglip2-so400m-patch16-384",
        "dinov2": "facebook/dinov2-small",
        "dinov3": "facebook/dinov3-vits16-pretrain-lvd1689m",
        "sam": "facebook/sam-vit-huge",
        "sam2": "facebook/sam2.1-hiera-large",
        "sam3": "facebook/sam3",
        "pe": "facebook/PE-Core-L14-336",
        "aimv2": "apple/aimv2-large-patch14-224",
        "depth_anything": "depth-anything/Depth-Anything-V2-Small-hf",
        "internvl": "OpenGVLab/InternVL3-1B-hf",
        "metaclip_2": "facebook/metaclip-2-worldwide-huge-quickgelu",
        "radio": "nvidia/C-RADIOv4-H",
        "timm": "resnet50.a1_in1k",
        "embedded": "embedded sam",
        "model": "runs/x/model",
        "labels": "photos/train",
    }
    assert set(cards) | {"custom"} == {settings.model_fields["type"].default for settings in TEACHERS}
    for kind, source in cards.items():
        found = settings_of("x", {"type": kind, "source": source}).model_dump()
        assert found["type"] == kind
        assert source.split(" ")[-1] in {str(value) for value in found.values()}


@needs_fixtures
def test_teachers_of_a_published_model_are_named_as_the_hub_names_them() -> None:
    cards = {name: head.teacher for name, head in load_fixture("name")[0].config.heads.items()}
    clip, sam = (settings_of(name, cards[name]).model_dump() for name in ("clip", "sam"))
    assert (clip["type"], clip["model"], clip["pretrained"]) == ("open_clip", "ViT-H-14-378-quickgelu", "dfn5b")
    assert (sam["type"], sam["model"]) == ("sam", "facebook/sam-vit-huge")


def test_nothing_is_fetched_for_what_a_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr("socket.create_connection", refuse)
    model = make(depth=1, heads={"clip": (24, 32, {"type": "clip", "source": "nobody/has-this-model"})})
    with pytest.raises(UserError, match=r"it is not fetched by itself; run `hf download nobody/has-this-model.*or pass teacher="):
        model.text("clip")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.text("dino"), "'embedded dino' of head 'dino' has no text encoder"),
        (lambda model: model.text("sam"), "head 'sam' has no summary"),
        (lambda model: model.text("clp"), "did you mean 'clip'"),
        (lambda model: model.masks("clip"), "'embedded clip' of head 'clip' has no mask decoder"),
        (lambda model: model.text("dino", teacher="embedded clip"), "its summary has 128 channels, that of teacher 'embedded clip' 64"),
    ],
)
def test_heads_without_texts_or_masks(quickstart: Model, call: Callable[[Model], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(quickstart)


@pytest.mark.slow
def test_masks_of_a_head(quickstart: Model) -> None:
    sam = EmbeddedSettings(name="sam").build()
    decoder, image = quickstart.masks("sam"), torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    seen = decoder.look(image)
    assert seen.spatial.shape[1:3] == (8, 8)  # the 64 px at which the student was trained last
    assert decoder.look(image, image_size=96).spatial.shape[1:3] == (12, 12)
    square = decoder.prepare(image)
    expected = quickstart(F.interpolate(square, (64, 64), mode="bicubic", antialias=True).clamp(0, 1), heads=["sam"])["sam"].spatial
    torch.testing.assert_close(seen.spatial, expected)
    points, boxes = [[10.0, 20.0], [100.0, 80.0]], [[5.0, 6.0, 50.0, 70.0], [60.0, 10.0, 119.0, 89.0]]
    three = decoder(seen, points=points, boxes=boxes, best=3)
    assert three.masks.shape == (2, 3, 90, 120)
    assert three.masks.dtype == torch.bool
    assert (three.scores.diff(dim=1) <= 0).all()
    scaled = [sam.scale_prompts(torch.tensor(one), 90, 120) for one in (points, boxes)]
    logits, scores = sam.masks(expected, points=scaled[0][None, :, None], boxes=scaled[1][None])
    torch.testing.assert_close(three.scores, scores[0].sort(descending=True).values)
    best = sam.to_image(logits, 90, 120)[0, torch.arange(2), scores[0].argmax(1)] > 0
    one = decoder(image, points=points, boxes=boxes)
    assert torch.equal(one.masks[:, 0], best)
    assert torch.equal(three.masks[:, 0], best)


def test_clicks_off_the_object_count(quickstart: Model) -> None:
    decoder = quickstart.masks("sam")
    seen = decoder.look(torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(0)))
    clicks = [[[10.0, 20.0], [100.0, 80.0]]]
    on, off = (decoder(seen, points=clicks, labels=[[1, second]]).scores for second in (1, 0))
    assert (on - off).abs().max() > 1e-4
    torch.testing.assert_close(decoder(seen, points=clicks).scores, on)


def test_the_decoder_alone_reads_sam_itself() -> None:
    sam = EmbeddedSettings(name="sam").build()
    decoder, image = MaskDecoder(sam), torch.rand(3, 70, 50)
    expected = EncodedImage(sam(decoder.prepare(image)).spatial, 70, 50)
    torch.testing.assert_close(decoder.look(image).spatial, expected.spatial)
    assert torch.equal(decoder(image, points=[[5, 5]]).masks, decoder(expected, points=[[5, 5]]).masks)
    assert decoder(expected, boxes=torch.zeros(0, 4)).masks.shape == (0, 1, 70, 50)


def test_prompts_on_the_edge_of_the_image_are_taken(quickstart: Model) -> None:
    decoder, seen = quickstart.masks("sam"), EncodedImage(torch.rand(1, 4, 4, 128), 90, 120)
    assert decoder(seen, points=[[0, 0], [120, 90]]).masks.shape == (2, 1, 90, 120)
    assert decoder(seen, boxes=[[-5, -5, 130, 95]]).masks.shape == (1, 1, 90, 120)  # as detectors draw them
    assert decoder(seen, points=[[[5, 5], [-10, -10]]], labels=[[1, -1]]).masks.shape == (1, 1, 90, 120)  # -1: no point


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "there is no prompt"),
        ({"labels": [1]}, "there is no prompt"),
        ({"points": [[1, 2, 3]]}, r"points: found shape \(1, 1, 3\)"),
        ({"points": [1, 2]}, "points: found shape"),
        ({"points": [[1, 2]], "labels": [1, 0]}, r"labels: found shape \(2, 1\), expected \(1, 1\)"),
        ({"points": [[1, 2]], "boxes": [[1, 2, 3, 4]] * 2}, r"boxes: found shape \(2, 4\), expected \(1, 4\)"),
        ({"boxes": [[1, 2, 3]]}, r"boxes: found shape \(1, 3\)"),
        ({"points": [[1, 2]], "best": 4}, "there are 3 masks"),
        ({"points": [[float("nan"), 2]]}, "points: there are values that are not finite"),
        ({"boxes": [[50, 50, 10, 10]]}, "boxes: .* found one the other way round"),
        ({"points": [[1, 2]], "labels": [7]}, "labels: expected 1 .the object."),
        ({"points": "a"}, r"points: expected numbers \[P, 2\] or \[P, N, 2\], px of the image, found 'a'"),
        ({"points": [[1, 2], [3]]}, "points: expected numbers"),
        ({"boxes": {"x": 1}}, r"boxes: expected numbers \[P, 4\]"),
        ({"points": [[1, 2]], "labels": ["on"]}, r"labels: expected numbers \[P, N\], 1 or 0"),
        ({"points": [[1, 2]], "best": "all"}, "there are 3 masks of a prompt, found 'all'"),
        ({"points": [[120, 90], [121, 5], [5, 91]]}, r"points: 2 of them outside .*, the first \(121, 5\); the image has 120 x 90 px"),
        ({"points": [[-1, 2]]}, "points: 1 of them outside the image"),
        ({"boxes": [[0, 95, 50, 99]]}, r"boxes: 1 of them outside the image, the first \(0, 95, 50, 99\)"),
        ({"points": [[500, 2]], "boxes": [[-9, 0, -1, 9]]}, r"points: 1 of them outside .*\nboxes: 1 of them outside"),
    ],
)
def test_wrong_prompts(quickstart: Model, prompts: dict, message: str) -> None:
    decoder = quickstart.masks("sam")
    with pytest.raises(UserError, match=message):
        decoder(EncodedImage(torch.rand(1, 4, 4, 128), 90, 120), **prompts)
    with pytest.raises(UserError, match=r"image: expected \[3, H, W\]"):
        decoder.prepare(torch.rand(1, 3, 8, 8))
