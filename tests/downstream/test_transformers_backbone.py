"""Students in detectors of transformers: forward, gradients, saved and read back."""

from pathlib import Path

import pytest
import torch
import transformers

import amradio
from amradio.downstream.detection.transformers_backbone import AmradioBackbone, backbone_config, take_weights
from amradio.errors import UserError
from amradio.formats.model_folder import write_folder
from amradio.network import NetworkConfig
from amradio.students.eradio_settings import EradioSettings
from detectors import VIT

STRIDED = ("stride8", "stride16", "stride32")
ERADIO = EradioSettings(size="xxxtiny", dim=8, stem_dim=8, depths=(1, 1, 1, 1), num_heads=(2, 2), window_size=3)
FAST = {
    "d_model": 16,
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 8,
    "num_denoising": 0,
    "num_labels": 3,
}


def small_model(settings: object, folder: Path) -> amradio.Model:
    torch.manual_seed(0)
    config = NetworkConfig(student=settings, num_summaries=1)  # type: ignore[arg-type]
    write_folder(folder, config, config.build(), {"step": 1, "num_steps": 1, "data": "nothing"})
    return amradio.load(folder)


def rt_detr_v2(config: object, channels: list[int]) -> torch.nn.Module:
    settings = transformers.RTDetrV2Config(backbone_config=config, encoder_in_channels=channels, decoder_in_channels=[16] * 3, **FAST)
    return transformers.RTDetrV2ForObjectDetection(settings)


def d_fine(config: object, channels: list[int]) -> torch.nn.Module:
    settings = transformers.DFineConfig(backbone_config=config, encoder_in_channels=channels, decoder_in_channels=[16] * 3, **FAST)
    return transformers.DFineForObjectDetection(settings)


def detr(config: object, channels: list[int]) -> torch.nn.Module:
    del channels
    kept = {key: value for key, value in FAST.items() if key not in ("encoder_hidden_dim", "num_denoising")}
    return transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=config, use_timm_backbone=False, **kept))


@pytest.mark.parametrize(
    ("build", "student", "stages"),
    [
        (rt_detr_v2, VIT, STRIDED),
        (d_fine, VIT, STRIDED),
        (detr, VIT, ("map",)),
        (rt_detr_v2, ERADIO, STRIDED),
        (detr, ERADIO, STRIDED[-1:]),
    ],
    ids=["rt_detr_v2-vit", "d_fine-vit", "detr-vit", "rt_detr_v2-eradio", "detr-eradio"],
)
def test_a_detector_of_transformers_learns_on_a_student_and_is_read_back(build, student, stages, tmp_path: Path) -> None:
    model = small_model(student, tmp_path / "student")
    config = backbone_config(model, stages, channels=16)
    torch.manual_seed(1)
    detector = build(config, [config.stage_channels[config.stage_names.index(name)] for name in stages]).train()
    take_weights(detector, model)
    backbone = next(module for module in detector.modules() if isinstance(module, AmradioBackbone))
    assert not backbone.student.training
    images = torch.rand(2, 3, 64, 64)
    if stages == ("map",):
        assert torch.equal(backbone(images).feature_maps[0], model(images).spatial.permute(0, 3, 1, 2))
    elif model.network.student.pyramid:
        expected = dict(zip(config.stage_names, model.network.student.forward_pyramid(images), strict=True))
        for level, name in zip(backbone(images).feature_maps, stages, strict=True):
            torch.testing.assert_close(level.detach(), expected[name], rtol=1e-5, atol=1e-5)
    else:
        assert [tuple(level.shape) for level in backbone(images).feature_maps] == [(2, 16, side, side) for side in (8, 4, 2)]
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.3]])} for _ in images]
    detector(pixel_values=images, labels=labels).loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in backbone.student.blocks_in_order()[0].parameters())
    detector.eval().save_pretrained(tmp_path / "detector")
    again = type(detector).from_pretrained(tmp_path / "detector").eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values=images).logits, detector(pixel_values=images).logits)
        assert torch.equal(again(pixel_values=images).pred_boxes, detector(pixel_values=images).pred_boxes)


def test_what_a_student_does_not_have_is_said(tmp_path: Path) -> None:
    model = small_model(VIT, tmp_path / "student")
    with pytest.raises(UserError, match="has no stage 'stride64'; there is: stride4, stride8, stride16, stride32, map"):
        backbone_config(model, ["stride64"])
    with pytest.raises(UserError, match="it has no backbone of amradio"):
        take_weights(torch.nn.Linear(1, 1), model)
    for stages in ("stride8", []):
        with pytest.raises(UserError, match="give a list of stages, such as"):
            backbone_config(model, stages)
    deeper = small_model(VIT.model_copy(update={"depth": 3}), tmp_path / "deeper")
    with pytest.raises(UserError, match=r"model: not the student that the detector was built for: not known: blocks\.2\.norm1\.weight"):
        take_weights(AmradioBackbone(backbone_config(model, ["map"])), deeper)
    backbone = AmradioBackbone(backbone_config(model, ["map"]))
    with pytest.raises(UserError, match="takes no images of 60x64 px; let the image processor resize and pad to 64x64 px"):
        backbone(torch.rand(1, 3, 60, 64))
