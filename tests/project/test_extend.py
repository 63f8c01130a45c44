"""A teacher, a student and a loss of one's own: a new file and a line in the room's tuple each; nothing else is touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import amradio
from amradio import UserError
from amradio.features import Features
from amradio.recipe import Recipe
from amradio.teachers import Teacher
from runs import metrics

PACKAGE = Path(amradio.__file__).parent

TEACHER = '''
"""Mean colours as a teacher, with a text encoder and a mask decoder."""

from typing import Literal

import torch
import torch.nn.functional as F

from ..features import Features
from ..images import to_float
from .base import Teacher
from .settings import TeacherSettings

SIDE = 64


class ColourSettings(TeacherSettings):
    """Mean colours."""

    type: Literal["colour"] = "colour"
    cell: int = 8
    """px of a cell."""

    def build(self):
        """Needs no file."""
        return Colour(self.cell)

    @classmethod
    def keys_of_source(cls, source):
        """`colours of 8 px`."""
        return {"cell": int(source.split()[2])}


class Colour(Teacher):
    """summary [B, 3], spatial [B, H, W, 3]; a text is what its letters add up to; a mask is where the colour is that of the prompt."""

    has_text = True
    num_masks = 2

    def __init__(self, cell):
        common = {"input_size": None, "licence": "none", "source": f"colours of {cell} px"}
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, patch_size=cell, dims=(3, 3), **common)

    def encode(self, images):
        return Features(images.mean((2, 3)), F.avg_pool2d(images, self.patch_size).permute(0, 2, 3, 1))

    def encode_text(self, texts):
        vectors = [[text.count("e") - 1.0, text.count("a") - 1.0, len(text) - 9.5] for text in texts]
        return torch.tensor(vectors, device=self.mean.device)

    def project_spatial(self, spatial):
        return spatial.float().detach()

    @property
    def mask_decoder(self):
        return self

    def prepare_image(self, image):
        pixels = to_float(image[None]) if image.dtype == torch.uint8 else image[None]
        return F.interpolate(pixels.to(self.mean.device), (SIDE, SIDE), mode="bilinear")

    def scale_prompts(self, coordinates, height, width):
        return coordinates * coordinates.new_tensor([SIDE / width, SIDE / height]).repeat(coordinates.shape[-1] // 2)

    def masks(self, spatial, *, points=None, labels=None, boxes=None):
        clicks = points[:, :, 0] if points is not None else (boxes[..., :2] + boxes[..., 2:]) / 2
        grid = clicks.new_tensor(spatial.shape[1:3][::-1])
        cells = (clicks / SIDE * grid).long().clamp(min=0).minimum(grid.long() - 1)
        colours = torch.stack([one[place[:, 1], place[:, 0]] for one, place in zip(spatial.float(), cells)])
        distance = (spatial.float()[:, None] - colours[:, :, None, None]).norm(dim=-1)[:, :, None]
        return torch.cat([0.5 - distance, 0.1 - distance], 2), torch.tensor([0.7, 0.3]).expand(*clicks.shape[:2], 2)

    def to_image(self, logits, height, width):
        return F.interpolate(logits.flatten(0, 1), (height, width), mode="bilinear").unflatten(0, logits.shape[:2])
'''

STUDENT = '''
"""One convolution as a student."""

from typing import Literal

from torch import nn

from ..features import Features
from .base import Student
from .settings import StudentRow, StudentSettings


class FlatSettings(StudentSettings):
    """One convolution."""

    type: Literal["flat"] = "flat"
    dim: int = 16
    """Channels."""

    def build(self, num_summaries):
        """Small."""
        return Flat(self.dim, num_summaries)

    @classmethod
    def catalogue(cls):
        """One row."""
        return [StudentRow("flat", "only", 16, 1, 1, 8, 16 * 3 * 64)]


class Flat(Student):
    """Patches of 8 px."""

    def __init__(self, dim, num_summaries):
        super().__init__()
        self.patch_size, self.summary_dim, self.spatial_dim, self.num_summaries = 8, dim, dim, num_summaries
        self.stem = nn.Conv2d(3, dim, 8, 8)

    def nearest_size(self, height, width):
        return max(8, height // 8 * 8), max(8, width // 8 * 8)

    def forward(self, images, draws=None):
        cells = self.stem(self.condition(images)).permute(0, 2, 3, 1)
        return Features(cells.mean((1, 2)).repeat(1, self.num_summaries), cells)
'''

LOSS = '''

class AbsoluteSettings(LossTerm):
    """Absolute error."""

    type: Literal["absolute"] = "absolute"
    scale: float = 1.0
    """Factor."""

    def build(self) -> Loss:
        """The loss as a pure function."""
        return lambda prediction, target, context=ALONE: self.scale * (prediction.float() - target.float()).abs().flatten(1).mean(1)


SINGLE_LOSSES: tuple[type[LossTerm], ...] = ('''

PROGRAM = """
import sys, warnings
warnings.simplefilter("error")
from amradio.__main__ import main
code = main(["distill", *sys.argv[1:]])
if code == 0:
    main(["students"])
    import amradio, torch
    model = amradio.load(sys.argv[-1].removeprefix("out="))
    print("LOADED", model.config.student.type, tuple(model(torch.rand(1, 3, 16, 16), heads=["mine"])["mine"].spatial.shape))
sys.exit(code)
"""

CAPABILITIES = """
import json, sys
import torch, amradio
folder = sys.argv[1]
scenes = "{type: scenes, length: 6, image_size: 32}"
results = amradio.evaluate(
    folder,
    f"evaluations.words={{type: zero_shot, data: {scenes}, templates: ['a {{}}']}}",
    f"evaluations.maps={{type: open_vocabulary_segmentation, data: {scenes}, templates: ['a {{}}']}}",
    f"evaluations.masks={{type: promptable_segmentation, data: {scenes}, bins: [5, 10]}}",
    "device=cpu",
)
model = amradio.load(folder)
text = model.text("mine")
image = torch.rand(3, 20, 24)
shapes = [text(["red", "a tree"]), text.map(image[None], ["red", "blue", "a"]), *model.masks("mine")(image, points=[[3, 4]], best=2)]
print("RESULT", json.dumps([{name: result.rows for name, result in results.items()}, [list(t.shape) for t in shapes]]))
"""


def add(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name}: '{old}'"
    path.write_text(text.replace(old, new))


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the package with a teacher, a student and a loss more, each by a new file (or class) and lines in its room."""
    copy = tmp_path / "source" / "amradio"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("embedded", "__pycache__"))
    (copy / "teachers" / "colour.py").write_text(TEACHER.lstrip())
    add(copy / "teachers" / "__init__.py", "from .catalogue import ", "from .colour import ColourSettings\nfrom .catalogue import ")
    add(copy / "teachers" / "__init__.py", "    CustomSettings,\n)", "    CustomSettings,\n    ColourSettings,\n)")
    (copy / "students" / "flat.py").write_text(STUDENT.lstrip())
    add(copy / "students" / "__init__.py", "from .vit_settings import ", "from .flat import FlatSettings\nfrom .vit_settings import ")
    text = (copy / "students" / "__init__.py").read_text()
    (copy / "students" / "__init__.py").write_text(text.replace("] = (", "] = (FlatSettings, ", 1))
    add(copy / "distillation/losses.py", "\nSINGLE_LOSSES: tuple[type[LossTerm], ...] = (", LOSS + "AbsoluteSettings, ")
    return copy.parent


@pytest.mark.slow
def test_one_new_file_and_its_lines_reach_validation_help_training_and_loading(extended, pictures, tmp_path):
    words = [
        f"data={{train: {{type: folder, path: {pictures}}}, num_workers: 0}}",
        "teachers={mine: {type: colour, cell: 8}}",
        "student=flat",
        "loss={summary: absolute, spatial: {type: absolute, scale: 2.0}}",
        "stages=[{steps: 3, partitions: [{image_size: 32, batch_size: 4}]}]",
        "normalize.batches=1",
        "engine={device: cpu, precision: float32, log_every: 1}",
    ]
    environment = os.environ | {"PYTHONPATH": str(extended), "OMP_NUM_THREADS": "1"}

    def run(*more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", PROGRAM, *words, *more, f"out={tmp_path / 'run'}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    wrong = run("teachers.mine.cel=3", "student.dimm=3", "loss.spatial.scal=2")
    assert wrong.returncode == 2
    for line in ("teachers.mine.cel", "student.dimm", "loss.spatial.scal"):
        assert f"error: {line}: there is no such key; did you mean '" in wrong.stderr

    ended = run()
    assert ended.returncode == 0, ended.stderr
    assert "teacher mine: colours of 8 px" in ended.stdout
    assert "flat" in ended.stdout.split("Students")[1]
    assert "LOADED flat (1, 2, 2, 3)" in ended.stdout
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3]

    command = [sys.executable, "-c", CAPABILITIES, str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows, shapes = json.loads(ended.stdout.split("RESULT")[1])
    assert all(set(measured) == {"student/mine", "teacher/mine"} for measured in rows.values()), rows
    assert rows["masks"]["teacher/mine"]["point"] > 10, "the teacher finds what has the colour of the click"
    assert shapes == [[2, 3], [1, 3, 4, 4], [1, 2, 20, 24], [1, 2]]


# a teacher object of one's own, in Python


class Mine(Teacher):
    """Brightness."""

    def __init__(self):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, patch_size=16, dims=(None, 2), input_size=48, licence="mine", source="my laptop")
        self.layer = torch.nn.Linear(3, 2)
        self.sizes: set[tuple[int, ...]] = set()

    def encode(self, images):
        self.sizes.add(tuple(images.shape[1:]))
        cells = torch.nn.functional.avg_pool2d(images, 16).permute(0, 2, 3, 1)
        return Features(None, self.layer(cells))


@pytest.mark.slow
def test_an_object_is_a_teacher(recipe):
    teacher = Mine()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    folder = amradio.distill(recipe("teachers.mine={type: custom, spatial_weight: 2.0}"), teachers={"mine": teacher})
    assert teacher.sizes == {(3, 48, 48)}
    assert not teacher.training
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    rows = metrics(folder)
    first = next(row for row in rows if "mine/spatial/loss" in row)
    total = sum(value for key, value in first.items() if key.endswith("/loss")) + first["mine/spatial/loss"]
    assert first["loss"] == pytest.approx(total, rel=1e-5)
    assert "val/mine/spatial/standardized_cosine" in rows[-1]
    model = amradio.load(folder)
    assert model.config.heads["mine"].teacher["source"] == "my laptop"
    assert model(torch.rand(1, 3, 32, 32), heads=["mine"])["mine"].spatial.shape == (1, 4, 4, 2)


@pytest.mark.slow
def test_an_object_without_a_place_and_a_place_without_an_object(recipe, tmp_path):
    with pytest.raises(UserError, match="'mine' was passed, but the recipe has no teacher of that name"):
        amradio.distill(recipe(), teachers={"mine": Mine()})
    with pytest.raises(UserError, match="'clip' was passed"):
        amradio.distill(recipe(), teachers={"clip": Mine()})
    with pytest.raises(UserError, match=r"teachers\.mine: a teacher of type 'custom' is an object"):
        amradio.distill(recipe("teachers.mine={type: custom}"))
    with pytest.raises(UserError, match=r"teachers\.mine: nothing to learn"):
        amradio.distill(recipe("teachers.mine={type: custom, spatial_weight: 0.0}"), teachers={"mine": Mine()})
    assert not (tmp_path / "run").exists()


def test_the_public_names_are_there():
    for name in amradio.__all__:
        assert getattr(amradio, name) is not None
    assert amradio.Recipe is Recipe
    with pytest.raises(AttributeError, match="no attribute 'Studnet'"):
        amradio.Studnet  # noqa: B018
