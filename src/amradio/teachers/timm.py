"""Any backbone of timm."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError, nearest
from ..features import Features
from ..files import read_json
from ..names import recognise
from .adapter import Adapter, Origin
from .catalogue import licence_of
from .folder_checks import check_size
from .loading import Source, check_override, fetch, quiet, reading
from .preprocess import Preprocess, Rule, three
from .settings import Precision, TimmSettings


def build(settings: TimmSettings) -> "TimmTeacher":
    """Loads the model of `settings` with timm; raises UserError where it is not there, unknown or damaged."""
    import timm

    source = Source(settings.type, settings.model, settings.revision)
    folder = fetch(source, _on_hub(source))
    config = _config_in(source, folder)
    fixed = config["pretrained_cfg"].get("fixed_input_size", False)
    options: dict[str, Any] = {"img_size": settings.input_size} if fixed and settings.input_size else {}
    with quiet(), reading(source, folder):
        check_size(source, folder, lambda: timm.create_model(f"local-dir:{folder}", pretrained=False))
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, **options)
        preprocess, native = preprocess_of(model, settings.input_size)
        input_size = native if fixed else settings.input_size
        stride = model.feature_info[-1]["reduction"]
        check_override(source, settings.input_size, stride)
        stated = config["pretrained_cfg"].get("license")
        licence = licence_of(settings.model, folder, stated if isinstance(stated, str) else None)
        return TimmTeacher(model, preprocess, input_size, Origin(settings.model, licence), settings.precision)


class TimmTeacher(Adapter):
    """summary [B, head_hidden_size]; spatial [B, H, W, channels of the last stage]."""

    def __init__(self, model: Any, preprocess: Preprocess, input_size: int | None, origin: Origin, precision: Precision):
        """model: any of timm's with `forward_intermediates`; input_size: px of a fixed square; None: any multiple of the stride."""
        if not hasattr(model, "forward_intermediates"):  # a property of timm's class, not of data
            raise UserError(f"teacher '{origin.source}': this architecture of timm gives no maps; choose another")
        last = model.feature_info[-1]
        super().__init__(
            model,
            preprocess,
            patch_size=last["reduction"],
            dims=(model.head_hidden_size, last["num_chs"]),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The pooled features before the classifier, and the map of the last stage.
        """
        final, maps = self.model.forward_intermediates(images, indices=1, norm=True)
        return Features(self.model.forward_head(final, pre_logits=True), maps[-1].permute(0, 2, 3, 1))


def preprocess_of(model: Any, input_size: int | None) -> tuple[Preprocess, int]:
    """timm's evaluation transform of a model, and the px of the input it makes; input_size: other than the model's own."""
    from timm.data.config import resolve_data_config

    data = resolve_data_config({"input_size": (3, input_size, input_size)} if input_size else {}, model=model)
    native = data["input_size"][-1]
    scaled = int(native / data["crop_pct"])
    rules: dict[str, Rule] = {"center": "shortest", "squash": "exact"}  # no model of the library says "border"
    mode = data["interpolation"] if data["interpolation"] in ("bilinear", "nearest") else "bicubic"
    rule, size, crop = rules[data["crop_mode"]], (scaled, scaled), (native, native)
    return Preprocess(three(data["mean"]), three(data["std"]), rule, size, mode, crop, rounds=True), native


def _on_hub(source: Source) -> str:
    """The hub name of a model's weights; a folder or a hub name as it is."""
    import timm

    recognised = recognise(source.model)
    if recognised.kind != "word":
        return source.model
    name = recognised.text
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise UserError(f"{source.where}: timm has no such architecture; {nearest(architecture, timm.list_models())}")
    tags = timm.list_pretrained(f"{architecture}.*")
    if not tags or (name != architecture and name not in tags):
        way_out = nearest(name, tags) if tags else "it has none for this architecture"
        raise UserError(f"{source.where}: timm has no weights of this name; {way_out}")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UserError(f"{source.where}: these weights are not on the hub; download them and give a local folder in timm's hub format")
    return config.hf_hub_id


def _config_in(source: Source, folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    config = read_json(file) if file.exists() else {}
    if not isinstance(config.get("architecture"), str):
        raise UserError(f"{source.where}: {folder} has no config.json of timm (a key 'architecture'); use the type of its own library")
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{source.where}: {folder} has no model.safetensors; pickled weights are not read")
    wrong = [key for key in ("pretrained_cfg", "model_args") if not isinstance(config.get(key, {}), dict)]
    if wrong:
        raise UserError(
            *(f"{source.where}: {file}: {key}: it is an object in a folder of timm; download the folder again" for key in wrong)
        )
    return {"pretrained_cfg": {}, **config}
