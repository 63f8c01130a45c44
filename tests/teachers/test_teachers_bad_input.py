"""What a user can get wrong about a teacher: one clear message each, at once; and what is read without a network."""

import math
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

import tiny
from amradio.config import validate
from amradio.errors import UserError
from amradio.teachers import TEACHERS
from amradio.teachers import embedded_teachers as shipped
from amradio.teachers.loading import quiet
from amradio.teachers.sam_settings import SamSettings
from amradio.teachers.settings import ClipSettings, Dinov2Settings


def build_error(kind: str, **keys: object) -> str:
    settings = next(each for each in TEACHERS if each.model_fields["type"].default == kind)
    with pytest.raises(UserError) as caught:
        validate(settings, keys).build()
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose every connection is refused and whose cache is empty."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


HUB_NAMES = {
    "clip": {"model": "openai/clip-vit-large-patch14-336"},
    "siglip": {"model": "google/siglip2-so400m-patch16-384"},
    "metaclip_2": {"model": "facebook/metaclip-2-worldwide-huge-quickgelu"},
    "pe": {"model": "PE-Core-L-14-336"},
    "aimv2": {"model": "apple/aimv2-large-patch14-224-lit"},
    "internvl": {"model": "OpenGVLab/InternVL3-1B-hf"},
    "depth_anything": {"model": "depth-anything/Depth-Anything-V2-Large-hf"},
    "dinov2": {"model": "facebook/dinov2-base"},
    "dinov3": {"model": "facebook/dinov3-vitb16-pretrain-lvd1689m"},
    "sam": {"model": "facebook/sam-vit-base"},
    "sam2": {"model": "facebook/sam2.1-hiera-large"},
    "sam3": {"model": "facebook/sam3"},
    "radio": {"model": "nvidia/C-RADIOv4-H"},
    "timm": {"model": "resnet50.a1_in1k"},
    "open_clip": {"model": "ViT-H-14", "pretrained": "laion2b_s32b_b79k"},
}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", tiny.BUILDERS)
def test_without_network_and_files(kind: str) -> None:
    start = time.perf_counter()
    message = build_error(kind, **HUB_NAMES[kind])
    assert time.perf_counter() - start < 2
    assert message.startswith(f"teacher '{HUB_NAMES[kind]['model']}'")
    assert "hf download" in message
    assert "HF_HOME" in message
    assert "local folder" in message


@pytest.mark.parametrize("kind", tiny.BUILDERS)
def test_a_missing_folder(kind: str) -> None:
    message = build_error(kind, model="./no/such/folder")
    assert "./no/such/folder" in message
    assert "no such folder" in message


@pytest.mark.parametrize(
    ("kind", "build", "right"), [("clip", tiny.tiny_dinov2, "dinov2"), ("dinov2", tiny.tiny_sam, "sam"), ("sam", tiny.tiny_timm, "timm")]
)
def test_the_wrong_family_names_the_right_type(tmp_path: Path, kind: str, build: Callable[[Path], Path], right: str) -> None:
    assert f"use type '{right}'" in build_error(kind, model=str(build(tmp_path)))


def test_a_folder_of_open_clip_is_recognised(tmp_path: Path) -> None:
    assert "use type 'open_clip'" in build_error("clip", model=str(tiny.tiny_open_clip(tmp_path)))


def test_other_folders_are_refused_by_open_clip_and_timm(tmp_path: Path) -> None:
    folder = str(tiny.tiny_dinov2(tmp_path))
    assert "dinov2_with_registers" in build_error("open_clip", model=folder)
    assert "architecture" in build_error("timm", model=folder)


def test_an_unknown_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "'bert' model" in build_error("clip", model=str(tmp_path))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tiny.tiny_clip(tmp_path) / "model.safetensors").unlink()
    assert "cannot be read" in build_error("clip", model=str(tmp_path))


def test_weights_that_lack_parameters(tmp_path: Path) -> None:
    file = tiny.tiny_dinov2(tmp_path) / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    del weights["layernorm.weight"]
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    assert "lack 1 parameters of the model, first 'layernorm.weight'" in build_error("dinov2", model=str(tmp_path))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    file = tiny.tiny_dinov2(tmp_path) / "model.safetensors"
    file.unlink()
    torch.save({"layernorm.weight": Evil()}, tmp_path / "pytorch_model.bin")
    assert "cannot be read" in build_error("dinov2", model=str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_of_the_hub_are_read_without_running_code(tmp_path: Path) -> None:
    folder = tiny.tiny_dinov2(tmp_path)
    whole = Dinov2Settings(model=str(folder)).build()
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    images = torch.rand(1, 3, 28, 28)
    assert torch.equal(Dinov2Settings(model=str(folder)).build()(images)[1], whole(images)[1])


def test_a_revision_of_a_local_folder(tmp_path: Path) -> None:
    assert "revision 'main'" in build_error("clip", model=str(tiny.tiny_clip(tmp_path)), revision="main")


def test_an_installation_without_the_embedded_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "EMBEDDED", tmp_path)
    assert "install amradio anew" in build_error("embedded", name="clip")


def test_names_that_timm_and_open_clip_do_not_have() -> None:
    assert "did you mean 'resnet50'" in build_error("timm", model="resnett50")
    assert "did you mean 'resnet50.a1_in1k'" in build_error("timm", model="resnet50.a1_in1kk")
    assert "did you mean 'ViT-H-14'" in build_error("open_clip", model="ViT-H14")
    assert "laion2b_s32b_b79k" in build_error("open_clip", model="ViT-H-14")
    assert "did you mean 'laion2b_s32b_b79k'" in build_error("open_clip", model="ViT-H-14", pretrained="laion2b_s32b_b79")


@pytest.mark.usefixtures("no_network")
def test_a_model_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    tiny.tiny_clip(tmp_path / "models--me--mine" / "snapshots" / ("a" * 40))
    (tmp_path / "models--me--mine" / "refs").mkdir(parents=True)
    (tmp_path / "models--me--mine" / "refs" / "main").write_text("a" * 40)
    teacher = ClipSettings(model="me/mine").build()
    assert teacher.source == "me/mine"
    assert math.isfinite(teacher(torch.rand(1, 3, 32, 32)).spatial.sum().item())


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", tiny.BUILDERS)
def test_a_revision_on_the_hub(tmp_path: Path, kind: str) -> None:
    """The cache holds the revision `v2` and no other."""
    tiny.BUILDERS[kind][0](tmp_path / "models--me--mine" / "snapshots" / ("a" * 40))
    (tmp_path / "models--me--mine" / "refs").mkdir(parents=True)
    (tmp_path / "models--me--mine" / "refs" / "v2").write_text("a" * 40)
    model = "hf-hub:me/mine" if kind in ("timm", "open_clip") else "me/mine"
    (settings,) = [cls for cls in TEACHERS if cls.model_fields["type"].default == kind]
    assert validate(settings, {"model": model, "revision": "v2"}).build().source.endswith("me/mine")
    assert "me/mine" in build_error(kind, model=model)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("missing", [False, True])
def test_weights_in_shards_are_here_only_when_all_are(tmp_path: Path, missing: bool) -> None:
    folder = tmp_path / "models--me--mine" / "snapshots" / ("a" * 40)
    with quiet():
        transformers.AutoModel.from_pretrained(tiny.tiny_dinov2(tmp_path / "whole")).save_pretrained(folder, max_shard_size="60KB")
    (tmp_path / "models--me--mine" / "refs").mkdir()
    (tmp_path / "models--me--mine" / "refs" / "main").write_text("a" * 40)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    if not missing:
        Dinov2Settings(model="me/mine").build()
        return
    shards[0].unlink()
    assert "hf download me/mine" in build_error("dinov2", model="me/mine")


def test_building_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny.tiny_sam(tmp_path)
    capfd.readouterr()
    validate(SamSettings, {"model": str(folder)}).build()
    assert capfd.readouterr() == ("", "")
