"""Damaged and misnamed models: one sentence that names the file and what to do, for every reader, and nothing large is built first."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import amradio
import tiny
from amradio import formats
from amradio.config import validate
from amradio.errors import UserError
from amradio.formats.model_folder import write_folder
from amradio.heads import MlpHeadSettings
from amradio.names import hub_name, recognise
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students import STUDENTS, VitSettings
from amradio.teachers import TEACHERS, Teacher

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"
DAMAGED = {
    "empty": (b"", "the file is empty"),
    "cut": (b'{"model_type": "clip", "vis', "not valid JSON"),
    "a list": (b"[1, 2]", "an object is expected, found a list"),
    "a text": (b'"clip"', "an object is expected, found"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
    "git-lfs": (LFS.encode(), "git lfs pull"),
    "deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "digits": (b'{"a": 1' + b"0" * 10_000 + b"}", "too many digits"),
}
CONFIG_OF = {"open_clip": "open_clip_config.json"}


def build(kind: str, folder: Path | str) -> Teacher:
    settings = next(each for each in TEACHERS if each.model_fields["type"].default == kind)
    return validate(settings, {"path" if kind == "model" else "model": str(folder)}).build()  # type: ignore[arg-type]


def error_of(call: Callable[[], object]) -> str:
    """The one line of a UserError; another exception fails the test."""
    with pytest.raises(UserError) as caught:
        call()
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole folder of every kind of teacher, and of a model."""
    path = tmp_path_factory.mktemp("whole")
    found = {kind: builds[0](path / kind) for kind, builds in tiny.BUILDERS.items()}
    head = HeadConfig(summary=HeadPart(head=MlpHeadSettings(hidden_dim=8), dim=8))
    student = VitSettings(dim=32, depth=2, num_heads=2, patch_size=8, max_image_size=64)
    config = NetworkConfig(student=student, num_summaries=1, heads={"clip": head})
    write_folder(path / "model", config, config.build(), {"step": 1, "num_steps": 1, "data": "nothing"})
    return {**found, "model": path / "model"}


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a folder, to be damaged."""
    return lambda kind: Path(shutil.copytree(whole[kind], tmp_path / kind))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most 4 GiB of address space beyond what is mapped."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def change(file: Path, *path: str, value: Any) -> None:
    """Sets one value of a JSON file."""
    content = json.loads(file.read_text())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))


def works_or_is_refused(kind: str, folder: Path) -> None:
    """What a library reads as a default may do."""
    try:
        teacher, message = build(kind, folder), ""
    except UserError as error:
        teacher, message = None, str(error)
    assert teacher is not None or str(folder) in message
    if teacher is not None:
        teacher(teacher.prepare(torch.rand(1, 3, 64, 64)))


# damaged files


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("kind", [*tiny.BUILDERS, "model"])
def test_a_damaged_configuration(kind: str, damage: str, copy):
    content, said = DAMAGED[damage]
    file = copy(kind) / CONFIG_OF.get(kind, "config.json")
    file.write_bytes(content)
    message = error_of(lambda: build(kind, file.parent))
    assert str(file) in message
    assert said in message


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("kind", ["clip", "sam", "dinov3", "siglip"])
def test_a_damaged_image_processor(kind: str, damage: str, copy):
    content, said = DAMAGED[damage]
    file = copy(kind) / "preprocessor_config.json"
    file.write_bytes(content)
    message = error_of(lambda: build(kind, file.parent))
    assert str(file) in message
    assert said in message


@pytest.mark.parametrize("keys", [{"size": "large"}, {"size": {}}, {"image_mean": [0.5]}, {"image_std": "x"}, {"crop_size": [1]}])
@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_an_image_processor_with_odd_values(kind: str, keys: dict[str, Any], copy):
    file = copy(kind) / "preprocessor_config.json"
    for key, value in keys.items():
        change(file, key, value=value)
    works_or_is_refused(kind, file.parent)


@pytest.mark.parametrize("damage", ["empty", "git-lfs", "cut", "nothing", "a pipe", "a folder", "zeros"])
@pytest.mark.parametrize("kind", ["clip", "timm", "open_clip", "radio", "model"])
def test_damaged_weights(kind: str, damage: str, copy):
    folder = copy(kind)
    (file,) = folder.glob("*.safetensors")
    content = file.read_bytes()
    file.unlink()
    if damage == "a pipe":
        os.mkfifo(file)
    elif damage == "zeros":
        file.symlink_to("/dev/zero")
    elif damage == "a folder":
        file.mkdir()
    elif damage != "nothing":
        file.write_bytes({"empty": b"", "git-lfs": LFS.encode(), "cut": content[: len(content) // 2]}[damage])
    begun = time.perf_counter()
    message = error_of(lambda: build(kind, folder))
    assert time.perf_counter() - begun < 10
    assert folder.name in message
    if damage == "git-lfs":
        assert "git lfs pull" in message


@pytest.mark.parametrize("kind", ["clip", "open_clip", "timm", "model"])
def test_special_files_as_a_configuration(kind: str, copy):
    file = copy(kind) / CONFIG_OF.get(kind, "config.json")
    for make in (
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("/dev/stdin"),
        lambda path: path.mkdir(),
    ):
        file.unlink()
        make(file)
        assert file.name in error_of(lambda: build(kind, file.parent))
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
            file.touch()


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("clip", ("vision_config", "hidden_size"), "32"),
        ("clip", ("vision_config",), 7),
        ("clip", ("vision_config", "patch_size"), 0),
        ("clip", ("vision_config", "image_size"), -32),
        ("clip", ("model_type",), ["clip"]),
        ("dinov2", ("num_attention_heads",), 0),
        ("dinov2", ("patch_size",), None),
        ("dinov3", ("layer_norm_eps",), "small"),
        ("sam", ("vision_config", "global_attn_indexes"), "all"),
        ("siglip", ("vision_config", "num_hidden_layers"), -1),
        ("radio", ("summary_idxs",), [99]),
        ("radio", ("max_img_size",), 0),
        ("timm", ("architecture",), 7),
        ("timm", ("pretrained_cfg",), "x"),
        ("timm", ("model_args",), {"depth": "two"}),
        ("timm", ("pretrained_cfg", "input_size"), "big"),
        ("timm", ("pretrained_cfg", "mean"), None),
        ("open_clip", ("model_cfg",), None),
        ("open_clip", ("model_cfg", "text_cfg"), "x"),
        ("open_clip", ("model_cfg", "vision_cfg", "patch_size"), 0),
        ("open_clip", ("model_cfg", "unknown"), 1),
        ("open_clip", ("preprocess_cfg", "mean"), "grey"),
    ],
)
def test_values_that_no_model_has(kind: str, path: tuple[str, ...], value: Any, copy):
    folder = copy(kind)
    change(folder / CONFIG_OF.get(kind, "config.json"), *path, value=value)
    works_or_is_refused(kind, folder)


# sizes


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("clip", ("vision_config", "hidden_size"), 400_000),
        ("clip", ("vision_config", "num_hidden_layers"), 100_000),
        ("clip", ("text_config", "vocab_size"), 10**9),
        ("clip", ("vision_config", "image_size"), 8_000_000),
        ("dinov2", ("num_hidden_layers",), 10**9),
        ("dinov2", ("image_size",), 2_000_000),
        ("sam", ("vision_config", "image_size"), 1_000_000),
        ("siglip", ("vision_config", "intermediate_size"), 10**7),
        ("radio", ("num_registers",), 10**8),
        ("timm", ("model_args", "embed_dim"), 400_000),
        ("timm", ("model_args", "depth"), 100_000),
        ("timm", ("num_classes",), 10**8),
        ("open_clip", ("model_cfg", "vision_cfg", "width"), 400_000),
        ("open_clip", ("model_cfg", "text_cfg", "layers"), 100_000),
        ("open_clip", ("model_cfg", "text_cfg", "vocab_size"), 10**8),
        ("model", ("student", "dim"), 1_920_000),
        ("model", ("student", "depth"), 3000),
        ("model", ("student", "depth"), 10**9),
        ("model", ("student", "max_image_size"), 1_600_000),
        ("model", ("student", "num_registers"), 10**9),
        ("model", ("student", "num_registers"), 10**40),
        ("model", ("num_summaries",), 10**9),
        ("model", ("num_summaries",), 0),
        ("model", ("heads", "clip", "summary", "dim"), 10**9),
        ("model", ("heads", "clip", "summary", "dim"), -5),
        ("model", ("heads", "clip", "summary", "head", "num_inner"), 10**8),
        ("model", ("heads", "clip", "summary", "head", "hidden_dim"), 10**9),
        ("model", ("heads", "clip", "slot"), 99),
        ("model", ("version",), 99),
        ("model", ("image_size",), -7),
        ("model", ("summary_slots",), [0, 5]),
        ("model", ("normalizes_blocks",), "each"),
        ("model", ("rotates",), True),
    ],
)
def test_a_configuration_that_promises_more_than_the_weights_hold(kind: str, path: tuple[str, ...], value: Any, copy):
    folder = copy(kind)
    change(folder / CONFIG_OF.get(kind, "config.json"), *path, value=value)
    begun = time.perf_counter()
    message = error_of(lambda: build(kind, folder))
    assert time.perf_counter() - begun < 10
    assert str(folder) in message
    assert len(message) < 3000


@pytest.mark.parametrize("name", ["", ".", "a.b", "backbone", "a b", "../x", "x" * 5000, "é\n"])
def test_names_of_heads(name: str, copy):
    folder = copy("model")
    config = json.loads((folder / "config.json").read_text())
    config["heads"] = {name: config["heads"]["clip"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert str(folder) in error_of(lambda: amradio.load(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "student",
    [
        {"type": "eradio", "dim": 10**6},
        {"type": "eradio", "depths": [10**6, 1, 1, 1]},
        {"type": "timm", "model": "vit_small_patch16_224"},
        {"type": "timm", "model": "vit_tiny_patch16_224", "image_size": 10**6},
        {"type": "custom"},
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_another_student_than_that_of_the_weights(student: dict[str, Any], copy):
    folder = copy("model")
    change(folder / "config.json", "student", value=student)
    begun = time.perf_counter()
    assert error_of(lambda: amradio.load(folder))
    assert time.perf_counter() - begun < 20


def test_a_transposed_weight_is_named(copy):
    file = copy("model") / "model.safetensors"
    weights = load_file(file)
    key = "student.blocks.0.mlp.fc1.weight"
    save_file(weights | {key: weights[key].T.contiguous()}, file)
    assert f"wrong shape: {key} is [32, 128], not [128, 32]" in error_of(lambda: amradio.load(file.parent))


# bombs


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_archives_that_unpack_to_more(tmp_path: Path):
    path = tmp_path / "bomb.pth.tar"
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as plain:
        parts = {info.filename: plain.read(info) for info in plain.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, b"\x80\x02" + b"}" * 60_000_000 + b"." if name.endswith("data.pkl") else content)
    assert "is compressed" in error_of(lambda: amradio.load(path))
    with zipfile.ZipFile(path, "w") as stored:
        for name, content in parts.items():
            stored.writestr(name, b"\x80\x02" + b"}" * (40 << 20) + b"." if name.endswith("data.pkl") else content)
    assert "its list of tensors has" in error_of(lambda: amradio.load(path))
    path.write_bytes(b"\x80\x02" + b"}" * (2 << 20) + b".")
    assert "it lists more than" in error_of(lambda: amradio.load(path))
    path.write_bytes(pickle.dumps([1, {"a": 2}], protocol=2) + b"rubbish")
    assert "not a whole checkpoint" in error_of(lambda: amradio.load(path))


# what is not a hub name


@pytest.mark.parametrize(
    ("text", "kind", "plain"),
    [
        ("facebook/dinov2-small", "hub", "facebook/dinov2-small"),
        ("facebook/dinov2-small/", "hub", "facebook/dinov2-small"),
        ("hf-hub:timm/resnet50.a1_in1k", "hub", "timm/resnet50.a1_in1k"),
        ("https://huggingface.co/facebook/dinov2-small", "url", "https://huggingface.co/facebook/dinov2-small"),
        ("huggingface.co/facebook/dinov2-small", "url", "huggingface.co/facebook/dinov2-small"),
        ("C:\\models\\clip", "windows", "C:\\models\\clip"),
        ("weights\\clip", "windows", "weights\\clip"),
        ("./weights/clip", "path", "./weights/clip"),
        ("~/weights/clip", "path", "~/weights/clip"),
        ("a/b/c", "path", "a/b/c"),
        ("resnet50.a1_in1k", "word", "resnet50.a1_in1k"),
        ("", "word", ""),
    ],
)
def test_what_a_name_is(text: str, kind: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert recognise(text)[:2] == (kind, plain)
    (tmp_path / "facebook").mkdir()
    (tmp_path / "facebook" / "dinov2-small").touch()
    assert recognise("facebook/dinov2-small").kind == "file"
    assert recognise("~/facebook").kind == recognise("facebook/").kind == "folder"


def test_names_on_pages_of_the_hub():
    assert hub_name("https://huggingface.co/nvidia/C-RADIOv3-B/tree/main") == "nvidia/C-RADIOv3-B"
    assert hub_name("hf.co/nvidia/C-RADIOv3-B") == "nvidia/C-RADIOv3-B"
    assert hub_name("https://huggingface.co/datasets/a/b") is hub_name("https://example.org/a/b") is None


def test_names_of_the_hub_are_those_that_its_client_takes():
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    texts = ["me/mine", "a.b-c_d/e.f-g", "_/x", "me/two--dashes", "me/a..b", "me/a.git", "-me/x", "me/x-", "me/x.", ".me/x", "ö/x"]
    texts.append(f"me/{'x' * 97}")
    taken = []
    for text in texts:
        with contextlib.suppress(HFValidationError):
            validate_repo_id(text)
            taken.append(text)
    assert [text for text in texts if recognise(text).kind == "hub"] == taken == texts[:3]


@pytest.mark.parametrize("kind", [*tiny.BUILDERS])
def test_a_teacher_by_what_is_no_hub_name(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "dinov2_vits14_pretrain.pth").write_bytes(b"x")
    said = {
        "weights/dinov2_vits14_pretrain.pth": "this is a file; give the folder",
        "https://huggingface.co/facebook/dinov2-small": "write the hub name 'facebook/dinov2-small'",
        "https://example.org/dinov2.pth": "this is a URL; download it",
        "C:\\weights\\clip": "a path of Windows",
        "~/nothing": "there is no such folder",
        "weights/": "weights",
    }
    for text, words in said.items():
        message = error_of(lambda text=text: build(kind, text))
        assert words in message, text
        assert "hf download" not in message


def test_hub_names_with_what_libraries_put_around_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for text in ("facebook/dinov2-nothing/", "hf-hub:facebook/dinov2-nothing"):
        assert "run `hf download facebook/dinov2-nothing`" in error_of(lambda text=text: build("dinov2", text))
    assert "did you mean 'facebook/dinov2-small'?" in error_of(lambda: build("dinov2", "facebok/dinov2-small"))
    assert "did you mean" not in error_of(lambda: build("dinov2", "stranger/model"))


def test_a_folder_by_its_home(copy, monkeypatch: pytest.MonkeyPatch):
    folder = copy("clip")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert build("clip", "~/clip/").summary_dim == 24
    assert build("timm", f"local-dir:{copy('timm')}").summary_dim


def test_a_model_by_what_is_no_path(tmp_path: Path, copy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "hf download nvidia/C-RADIOv3-B --local-dir" in error_of(lambda: amradio.load("nvidia/C-RADIOv3-B"))
    assert "hf download nvidia/C-RADIOv3-B" in error_of(lambda: amradio.load("https://huggingface.co/nvidia/C-RADIOv3-B"))
    assert "run `hf download me/mine --revision v2 --local-dir FOLDER`" in error_of(lambda: amradio.load("me/mine@v2"))
    assert "this is a URL" in error_of(lambda: amradio.load("https://example.org/model.pth.tar"))
    assert "a path of Windows" in error_of(lambda: amradio.load("C:\\runs\\model"))
    assert "there is no such file or folder" in error_of(lambda: amradio.load("runs/nothing/model"))
    assert "model_type 'clip'" in error_of(lambda: amradio.load(copy("clip")))
    (tmp_path / "model.pth.tar").write_text(LFS)
    assert "git lfs pull" in error_of(lambda: amradio.load("model.pth.tar"))
    os.mkfifo(tmp_path / "pipe.pth.tar")
    assert "pipe" in error_of(lambda: amradio.load("pipe.pth.tar"))
    monkeypatch.setenv("HOME", str(copy("model").parent))
    assert amradio.load("~/model").heads == ("clip",)
    assert formats.read("~/model/").config.heads.keys() == {"clip"}


@pytest.mark.slow
@pytest.mark.parametrize("text", ["weights/x.pth", "https://example.org/x.safetensors", "C:\\x", "~/nothing", "nothing/here"])
def test_what_a_student_begins_with(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "x.pth").write_bytes(b"x")
    vit, timm = (next(each for each in STUDENTS if each.model_fields["type"].default == kind) for kind in ("vit", "timm"))
    shape = {"dim": 32, "depth": 1, "num_heads": 2, "max_image_size": 64}
    assert text in error_of(lambda: validate(vit, {**shape, "start_from": text}).build(1))
    assert text in error_of(lambda: validate(timm, {"model": "test_vit", "start_from": text}).build(1))
