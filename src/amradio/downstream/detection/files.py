"""A detector in a model folder: `detector.json` and `detector.safetensors` beside the student's own files."""

import json
from pathlib import Path
from typing import Literal

from ... import formats
from ...config import Pixels, Settings, validate
from ...errors import UserError, shown
from ...files import aside, read_json, user_path, write_aside
from ...formats.model_folder import folder_of, write_folder
from ...network import Network, NetworkConfig, load_exactly
from ...students.finetuning import merged
from ...students.map_normalizers import Normalizers
from ...tensors import read_tensors, write_tensors
from .detector import Detector
from .settings import AnyDetector

CONFIG_FILE, WEIGHTS_FILE = "detector.json", "detector.safetensors"
OF_STUDENT = ("student.", "rotation.")
"""Begin of the names of a detector's tensors that are in the student's file."""


class DetectorConfig(Settings):
    """What `detector.json` says."""

    format: Literal["amradio-detector"] = "amradio-detector"
    detector: AnyDetector
    classes: list[str]
    image_size: Pixels
    """px of the canvas."""


def write_detector(folder: Path, config: NetworkConfig, detector: Detector, notes: dict[str, object]) -> None:
    """Writes a model folder with the student, without heads of teachers and with low-rank additions merged, and the detector.

    config: of the student's network. notes: see `write_folder`. Every file is written aside and renamed.
    """
    bare = config.model_copy(update={"heads": {}, "image_size": detector.image_size, "normalizes_blocks": None})
    network = Network(merged(detector.student), {}, bare.summary_slots, Normalizers(detector.rotation, None))
    write_folder(folder, bare, network, notes)
    weights = {name: tensor for name, tensor in detector.state_dict().items() if not name.startswith(OF_STUDENT)}
    with aside(folder / WEIGHTS_FILE) as unfinished:
        write_tensors(weights, unfinished)
    stated = DetectorConfig(detector=detector.settings, classes=list(detector.classes), image_size=detector.image_size)
    write_aside(folder / CONFIG_FILE, (json.dumps(stated.model_dump(mode="json"), indent=1) + "\n").encode())


def load_detector(path: str | Path) -> Detector:
    """A detector as `amradio detect train` wrote it, on the CPU and in evaluation mode.

    path: a run folder or its model folder. Raises UserError where there is none, or a file is damaged.
    """
    folder = folder_of(user_path(path))
    file = folder / CONFIG_FILE
    if not file.is_file():
        advice = "give a folder that `amradio detect train` wrote"
        raise UserError(f"{shown(folder)}: there is no {CONFIG_FILE}, so this is no detector; {advice}")
    config = validate(DetectorConfig, read_json(file), f"{file}: ")
    detector = Detector(formats.read(folder).network, config.detector, config.classes, config.image_size)
    weights = {name: tensor for name, tensor in detector.state_dict().items() if name.startswith(OF_STUDENT)}
    load_exactly(detector, weights | read_tensors(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    wrong = [name for name, parameter in detector.named_parameters() if not parameter.isfinite().all()]
    if wrong:
        raise UserError(
            f"{shown(folder)}: there are weights that are no finite numbers ({wrong[0]}); train it again from an earlier checkpoint"
        )
    return detector.eval().requires_grad_(False)
