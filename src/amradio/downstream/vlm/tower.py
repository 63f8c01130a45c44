"""A student as the vision tower of transformers' LLaVA: patch tokens only, images of mixed sizes where the student can pack them.

Importing this module registers the tower and its processor with transformers, so that `LlavaForConditionalGeneration.from_pretrained` and
`AutoProcessor.from_pretrained` read folders that have it.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoProcessor, LlavaProcessor, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ...config import validate
from ...errors import UserError
from ...features import Features
from ...model import Model
from ...network import NetworkConfig

TYPE = "amradio_vision"
"""`model_type` of the tower in config.json."""


class AmradioVisionConfig(PreTrainedConfig):
    """What config.json says of the tower."""

    model_type = TYPE
    network: dict | None = None
    """The network, as config.json of a model folder has it."""
    hidden_size: int = 0
    """Channels of the map."""
    patch_size: int = 16
    """px per cell of the map that is returned, and so per image token."""
    head: str | None = None
    """The teacher whose head gives the map; None for the backbone's."""
    packs: bool = False
    """Whether images of several sizes come in one batch."""


class AmradioVision(PreTrainedModel):
    """A frozen `Model` whose map becomes image tokens.

    It takes images in [0, 1], because a student normalises by itself; it has no training mode, in which a ViT draws the crop of its
    position table and BatchNorm moves its statistics; and it returns no summaries, so that no prefix token reaches the language model.
    """

    config: AmradioVisionConfig  # pyright: ignore[reportIncompatibleUnannotatedOverride]
    config_class = AmradioVisionConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: AmradioVisionConfig):
        super().__init__(config)
        stated = validate(NetworkConfig, config.network or {}, "vision_config.network.").without_start()
        with torch.device("cpu"):  # from_pretrained builds on the meta device, where buffers would get no values
            self.model = Model(stated, stated.build())
        saved = self.model.state_dict()
        self._constants = {name: buffer.clone() for name, buffer in self.model.named_buffers() if name not in saved}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fills in what no file holds: from_pretrained empties buffers that are not persistent (mean, std), then calls this."""
        if module is self:
            for name, value in self._constants.items():
                self.model.get_buffer(name).copy_(value)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        del mode
        return super().train(False)

    @property
    def patch_size(self) -> int:
        """px per image token."""
        return self.config.patch_size

    def forward(self, pixel_values: Tensor, image_sizes: Tensor | Sequence[Any] | None = None, **unused: Any) -> BaseModelOutput:
        """pixel_values: [B, 3, H, W] RGB in [0, 1], of a legal size; or with image_sizes [B, 2] (height, width) padded at right and bottom.

        Returns `last_hidden_state`, [B, H' * W', D], or with image_sizes the tokens of all images one after another, [1, T, D].
        """
        del unused  # arguments of other towers: return_dict, output_hidden_states
        head = self.config.head
        with torch.no_grad():
            if image_sizes is None:
                tokens = self._map(self.model(pixel_values, heads=head)).flatten(1, 2)
            else:
                sizes = torch.as_tensor(image_sizes).tolist()
                images = [image[:, :height, :width] for image, (height, width) in zip(pixel_values, sizes, strict=True)]
                if self.config.packs:
                    maps = [self._map(features) for features in self.model.pack(images, heads=head)]
                else:
                    maps = [self._map(self.model(image[None], heads=head)) for image in images]
                tokens = torch.cat([cells.flatten(0, 2) for cells in maps])[None]
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))  # pyright: ignore[reportArgumentType]

    def _map(self, features: Features | dict[str, Features]) -> Tensor:
        chosen = features if isinstance(features, Features) else features[self.config.head or "backbone"]
        assert chosen.spatial is not None, "only heads with a map are taken"
        return chosen.spatial


class AmradioLlavaProcessor(LlavaProcessor):
    """LLaVA's processor with as many image tokens as the image itself has cells, without the padding of its batch."""

    @property
    def model_input_names(self) -> list[str]:
        """Of what the model takes, with `image_sizes`."""
        return list(dict.fromkeys([*super().model_input_names, "image_sizes"]))

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """The image tokens of one image."""
        if "image_sizes" not in image_inputs:
            return super().replace_image_token(image_inputs, image_idx, **kwargs)
        assert self.patch_size is not None
        height, width = image_inputs["image_sizes"][image_idx]
        return self.image_token * (int(height) // self.patch_size * (int(width) // self.patch_size))


def tower_config(model: Model, head: str | None, image_size: int) -> AmradioVisionConfig:
    """The tower of a model. head: gives the map, None for the backbone. image_size: px of the long side, or of the square.

    Raises UserError where the model cannot be written into a configuration, or takes no image of this size.
    """
    problems: list[str] = []
    if model.config.student.type == "custom":
        problems.append("model: a student of type custom is an object, which no LLaVA folder can hold; take a student of another type")
    if head is not None and head not in model.config.heads:
        known = ", ".join(name for name, part in model.config.heads.items() if part.spatial is not None)
        problems.append(
            f"head: there is no '{head}'; {f'there is: {known}' if known else 'this model has no head with a map; leave it out'}"
        )
    elif head is not None and model.config.heads[head].spatial is None:
        problems.append(f"head: '{head}' has no map, only a summary; take another head, or null for the backbone")
    packs = _packs(model)
    legal = model.nearest_size(image_size, image_size)
    if legal != (image_size, image_size):
        advice = f"take {legal[0]}" if legal[0] == legal[1] else "take another"
        problems.append(f"image_size: {image_size} px is no side of an image that the student takes; {advice}")
    if problems:
        raise UserError(*problems)
    small = model.nearest_size(1, 1) if packs else legal
    network = model.config if head is not None else model.config.model_copy(update={"heads": {}})
    with torch.no_grad():
        features = model(torch.zeros(1, 3, *small, device=model.device), heads=head)
    cells = (features if isinstance(features, Features) else features[head or ""]).spatial
    assert cells is not None
    return AmradioVisionConfig(
        network=network.model_dump(mode="json"), hidden_size=cells.shape[3], patch_size=small[0] // cells.shape[1], head=head, packs=packs
    )


def tower_faults(tower: AmradioVision) -> list[str]:
    """What config.json states of a tower and its network is not; sentences, with what is right."""
    stated, side = tower.config, tower.model.min_resolution_step
    try:
        right = tower_config(tower.model, stated.head, tower.model.nearest_size(8 * side, 8 * side)[0])
    except UserError as error:
        return [f"vision_config.{problem}" for problem in error.problems]
    return [
        f"vision_config.{key} is {getattr(stated, key)} in config.json, of this student it is {getattr(right, key)}; copy the folder again"
        for key in ("hidden_size", "patch_size", "packs")
        if getattr(stated, key) != getattr(right, key)
    ]


def _packs(model: Model) -> bool:
    """Whether the student takes images of several sizes at once."""
    side = model.min_resolution_step
    try:
        with torch.no_grad():
            model.pack([torch.zeros(3, side, side, device=model.device), torch.zeros(3, side, 2 * side, device=model.device)])
    except UserError:
        return False
    return True


AutoConfig.register(TYPE, AmradioVisionConfig, exist_ok=True)
AutoModel.register(AmradioVisionConfig, AmradioVision, exist_ok=True)
AutoProcessor.register(AmradioVisionConfig, AmradioLlavaProcessor, exist_ok=True)
