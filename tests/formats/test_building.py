"""What reading a model does not do: it draws no weights that the file then replaces."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from amradio import formats
from amradio.formats.model_folder import write_folder
from amradio.network import NetworkConfig
from amradio.students import VitSettings
from amradio.students.eradio_settings import EradioSettings
from amradio.students.settings import StudentSettings
from amradio.students.timm_settings import TimmSettings

NOTES: dict[str, object] = {"step": 1, "num_steps": 1, "data": "nothing"}


def vit(depth: int) -> VitSettings:
    return VitSettings(dim=32, depth=depth, num_heads=2, patch_size=8, max_image_size=64)


def numbers_drawn(settings: StudentSettings, folder: Path) -> torch.Tensor:
    """The state of the global generator after a model was read."""
    config = NetworkConfig(student=settings, num_summaries=1)
    write_folder(folder, config, config.build(), NOTES)
    torch.manual_seed(3)
    formats.read(folder)
    return torch.get_rng_state()


def test_blocks_are_not_drawn(tmp_path: Path) -> None:
    assert torch.equal(numbers_drawn(vit(1), tmp_path / "one"), numbers_drawn(vit(4), tmp_path / "four"))


@pytest.mark.parametrize(
    "settings",
    [
        vit(2),
        EradioSettings(size="xxxtiny", dim=8, stem_dim=8, depths=(1, 1, 1, 1), num_heads=(2, 2), window_size=3),
        TimmSettings(model="test_efficientnet"),
        pytest.param(TimmSettings(model="swin_tiny_patch4_window7_224", image_size=64), marks=pytest.mark.slow),
    ],
    ids=["vit", "eradio", "timm", "swin"],
)
def test_weights_and_buffers_are_those_of_the_written_network(settings: StudentSettings, tmp_path: Path) -> None:
    """Buffers that no file holds (indices of windows, mean and std) among them."""
    config = NetworkConfig(student=settings, num_summaries=1)
    written = config.build().eval()
    write_folder(tmp_path / "model", config, written, NOTES)
    read = formats.read(tmp_path / "model").network
    for kind in ("named_parameters", "named_buffers"):
        one, other = dict(getattr(written, kind)()), dict(getattr(read, kind)())
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].requires_grad == other[name].requires_grad for name in one)


@pytest.mark.slow
def test_threads_read_models_beside_one_another_and_beside_new_ones(tmp_path: Path) -> None:
    """What keeps weights from being drawn is of the thread that reads."""
    config = NetworkConfig(student=vit(3), num_summaries=1)
    write_folder(tmp_path / "model", config, config.build(), NOTES)
    problems: list[str] = []

    def read() -> None:
        for _ in range(8):
            if any(tensor.is_meta for tensor in formats.read(tmp_path / "model").network.state_dict().values()):
                problems.append("read")

    def build() -> None:
        for _ in range(30):
            if any(tensor.is_meta for tensor in config.build().state_dict().values()):
                problems.append("built")

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(work) for work in (read, build, read)]:
            future.result()
    assert problems == []
