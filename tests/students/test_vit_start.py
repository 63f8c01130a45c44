"""Starting a ViT from timm weights, a RADIO file, or a model folder."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from amradio.errors import UserError
from amradio.students.vit import Vit
from amradio.students.vit_pretrained import start_from
from amradio.students.vit_settings import VitSettings

TINY = {"dim": 48, "depth": 2, "num_heads": 4, "patch_size": 16, "num_registers": 2, "max_image_size": 64}


def make(num_summaries: int = 1, **changes: object) -> Vit:
    return VitSettings.model_validate({**TINY, **changes}).build(num_summaries).eval()


def timm_vit(**changes: object) -> VisionTransformer:
    torch.manual_seed(0)
    given = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0, "final_norm": False}
    model = VisionTransformer(**{**given, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def saved(model: torch.nn.Module, folder: Path, config: dict[str, object] | None = None) -> str:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder if config is not None else folder / "model.safetensors")


TIMM_FORMS = {
    "plain": {},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "positions on registers": {"reg_tokens": 2},
    "layer scale": {"init_values": 0.3},
    "layer scale into layer scale": {"init_values": 0.3, "student": {"layer_scale": 1.0}},
    "none into layer scale": {"student": {"layer_scale": 0.01}},
}


@pytest.mark.parametrize("form", TIMM_FORMS)
@torch.no_grad()
def test_the_function_of_a_timm_model_is_kept(form: str, tmp_path: Path):
    changes = dict(TIMM_FORMS[form])
    student_changes = changes.pop("student", {})
    model = timm_vit(**changes)
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.2, 0.3]
    source = saved(model, tmp_path, {"pretrained_cfg": {"mean": mean, "std": std}})
    registers = changes.get("reg_tokens", 0)
    student = make(num_registers=registers, start_from=source, **student_changes)
    images = torch.rand(2, 3, 64, 64)
    expected = model.forward_features((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    found = student(images)
    torch.testing.assert_close(found.summary, expected[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.spatial.flatten(1, 2), expected[:, 1 + registers :], rtol=1e-4, atol=1e-4)
    assert student.started_from is not None
    assert student.started_from.left == ()
    assert not any(name.endswith("gamma") for name in student.started_from.unused)
    adapted = {name for name in student.started_from.changed if name.startswith("patch_generator")}
    assert adapted == {name for name, _ in student.named_parameters() if name.startswith("patch_generator")}


@torch.no_grad()
def test_other_patch_table_and_tokens_are_fitted(tmp_path: Path):
    model = timm_vit()
    student = make(num_summaries=3, patch_size=8, max_image_size=128, start_from=saved(model, tmp_path))
    report = student.started_from
    assert report is not None
    assert set(report.changed) == {"patch_generator.pos_embed", "patch_generator.cls_token.token", "patch_generator.embedder.weight"}
    tokens = student.patch_generator.cls_token.token
    torch.testing.assert_close(tokens[0], tokens[2])
    images = torch.rand(1, 3, 64, 64).repeat_interleave(2, 2).repeat_interleave(2, 3)
    cosine = torch.nn.functional.cosine_similarity
    same = make(start_from=saved(model, tmp_path))(images)  # patch 16 on twice the size
    assert cosine(student(torch.nn.functional.avg_pool2d(images, 2)).spatial, same.spatial, dim=-1).mean() > 0.9
    assert "tensors taken as they are" in str(report)


@torch.no_grad()
def test_a_table_that_grew_reads_as_before(tmp_path: Path):
    source = saved(timm_vit(), tmp_path)
    small, grown = make(start_from=source), make(start_from=source, max_image_size=1024)
    before, after = small.patch_generator.positions((4, 4), None), grown.patch_generator.positions((4, 4), None)
    assert (before - after).abs().max() < 0.1 * before.std()


@torch.no_grad()
def test_a_model_folder_is_taken_with_its_summaries_and_registers(tmp_path: Path):
    torch.manual_seed(1)
    old = make(num_summaries=2, num_registers=2)
    holder = torch.nn.ModuleDict({"student": old, "heads": torch.nn.Linear(3, 3)})
    source = saved(holder, tmp_path, {"format": "amradio", "num_summaries": 2})
    same = make(num_summaries=2, start_from=source)
    for name, tensor in old.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor, rtol=0, atol=0)
    assert same.started_from is not None
    assert same.started_from.changed == same.started_from.left == ()
    assert same.started_from.unused == ("heads.bias", "heads.weight")
    torch.manual_seed(2)
    more = make(num_summaries=3, num_registers=3, start_from=source).patch_generator.cls_token.token
    torch.testing.assert_close(more[[0, 1, 3, 4]], old.patch_generator.cls_token.token, rtol=0, atol=0)
    assert not torch.allclose(more[2], old.patch_generator.cls_token.token[1])


@torch.no_grad()
def test_a_published_file_is_taken(tmp_path: Path):
    old = make(num_summaries=3, num_registers=5, layer_scale=0.5)
    weights = {f"radio_model.model.{k.replace('gamma', 'grandma')}": t.contiguous() for k, t in old.state_dict().items()}
    save_file(weights | {"radio_model.summary_idxs": torch.tensor([0, 1])}, tmp_path / "model.safetensors")
    new = make(num_summaries=3, num_registers=5, layer_scale=0.1, start_from=str(tmp_path / "model.safetensors"))
    for name, tensor in old.state_dict().items():
        torch.testing.assert_close(new.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_deeper_student_says_what_stayed_random(tmp_path: Path):
    student = make(depth=3, start_from=saved(timm_vit(), tmp_path))
    assert student.started_from is not None
    assert all(name.startswith("blocks.2.") for name in student.started_from.left)
    assert len(student.started_from.left) == 12


def test_a_timm_name_goes_through_the_hub(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, bool]] = []

    def create_model(name: str, pretrained: bool, num_classes: int) -> VisionTransformer:
        asked.append((name, pretrained))
        model = timm_vit()
        model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    student = make(start_from="vit_small_patch16_224.augreg_in21k")
    assert asked == [("vit_small_patch16_224.augreg_in21k", True)]
    assert student.started_from is not None
    assert student.started_from.source == "vit_small_patch16_224.augreg_in21k"
    assert student.started_from.left == ()


def test_without_a_network_the_message_says_so(monkeypatch: pytest.MonkeyPatch):
    def create_model(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(UserError, match=r"cannot be fetched .no route.; give a downloaded"):
        make(start_from="vit_small_patch16_224")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("vit_smal_patch16_224", "timm has no such model; did you mean 'vit_small_patch16_224'"),
        ("runs/none/model", "there is no such file or folder"),
        ("none.safetensors", "there is no such file"),
        ("{tmp}", "there is no such file"),
        ("{tmp}/broken.safetensors", "not a whole safetensors file"),
        ("{tmp}/other.safetensors", "neither a timm ViT nor a RADIO ViT"),
    ],
)
def test_what_cannot_be_read_is_one_message(source: str, message: str, tmp_path: Path):
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=message):
        make(start_from=source.format(tmp=tmp_path))


def test_another_width_is_refused(tmp_path: Path):
    source = saved(timm_vit(embed_dim=32), tmp_path)
    with pytest.raises(UserError, match="its width is 32, the student's 48"):
        start_from(make(), source)
