"""Labels in the place of a teacher: what they are, a run from scratch on them, a distilled run compared with it, and bad input."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from amradio import distill, evaluate, load
from amradio.__main__ import main
from amradio.commands.compare import compare
from amradio.errors import UserError
from amradio.recipe import Recipe
from amradio.teachers.labels import LabelsTeacher
from amradio.teachers.settings import LabelsSettings
from runs import metrics

COLOURS = {"blue": (20, 30, 220), "green": (20, 200, 40), "red": (220, 30, 20)}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `val`, each with one folder a class of pictures that differ in colour, some a folder deeper."""
    draws = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("classes")
    for part in ("train", "val"):
        for name, colour in COLOURS.items():
            for number in range(6):
                path = folder / part / name / ("deeper" if number == 5 else "") / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = torch.randint(-20, 20, (32, 32, 3), generator=draws)
                Image.fromarray((torch.tensor(colour) + noise).clamp(0, 255).to(torch.uint8).numpy()).save(path)
    return folder


@pytest.fixture
def words(classes: Path) -> tuple[str, ...]:
    """Of a run on labels alone."""
    data = (f"data.train.path={classes / 'train'}", f"data.val.path={classes / 'val'}")
    labels = f"teachers.labels={{type: labels, path: {classes / 'train'}}}"
    return (*data, labels, "teachers.clip=null", "teachers.dino=null", "teachers.sam=null", "optimizer.warmup_steps=0")


def test_a_class_is_the_folder_in_the_key(classes: Path) -> None:
    teacher = LabelsSettings(path=str(classes / "train")).build()
    assert isinstance(teacher, LabelsTeacher)
    assert (teacher.summary_dim, teacher.spatial_dim) == (3, None)
    found = teacher.of_keys(["red/0.png", "mixed/blue/deeper/5.png", "green/red.png"])
    assert found.summary is not None
    assert found.summary.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert found.spatial is None
    with pytest.raises(UserError, match=r"image 'red\.png' is in no folder of a class there; labels need a source of type folder"):
        teacher.of_keys(["red.png"])
    with pytest.raises(UserError, match="no features of others"):
        teacher(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "No such file or directory; give a folder with one folder a class"),
        (lambda folder: folder / "train" / "red", "path: .*red: 1 folders in it; two classes at least"),
    ],
)
def test_folders_that_are_no_classes(classes: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelsSettings(path=str(make(classes))).build()


@pytest.mark.slow
def test_a_student_from_scratch_on_labels_beside_a_distilled_one(
    recipe: Callable[..., Recipe], words: tuple[str, ...], classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It learns classes of colours; its head is no teacher of an evaluation, and runs are compared in pairs of one seed."""
    suite = tmp_path / "suite.yaml"
    train, val = ({"type": "class_folder", "path": str(classes / part)} for part in ("train", "val"))
    suite.write_text(f"evaluations: {{near: {{type: knn, database: {train}, queries: {val}, k: [3], models: [student]}}}}\n")
    runs: dict[str, list[Path]] = {"labels": [], "distilled": []}
    for seed in (1, 2):
        common = (f"data.train.path={classes / 'train'}", f"data.val.path={classes / 'val'}", f"seed={seed}", f"evaluate.suite={suite}")
        for kind, more in (("labels", words), ("distilled", ("teachers.dino=null", "teachers.sam=null"))):
            steps = ("stages.0.steps=30", "evaluate.every=30", "engine.checkpoint_every=100")
            runs[kind].append(distill(recipe(*more, *common, *steps, f"out={tmp_path / f'{kind}{seed}'}")))
    last = [row for row in metrics(runs["labels"][0]) if "val/labels/summary/standardized_cosine" in row][-1]
    assert last["val/labels/summary/standardized_cosine"] > 0.7
    assert load(runs["labels"][0]).heads == ("labels",)
    capsys.readouterr()
    assert main(["compare", *map(str, runs["distilled"]), "--against", *map(str, runs["labels"])]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "against students trained on labels, " in printed
    assert "Distillation" in printed
    rows = compare(*runs["distilled"], against=runs["labels"])["rows"]
    assert [row["name"] for row in rows] == ["k=3, student"]
    results = evaluate(runs["labels"][0], str(suite), "device=cpu", "num_workers=0")
    assert set(results["near"].rows) == {"student"}
    picture = str(next((classes / "val").rglob("*.png")))
    assert main(["show", str(runs["labels"][0]), picture, "--out", str(tmp_path / "shown")]) == 0, capsys.readouterr().err


def test_images_without_a_class_end_the_run_before_it_begins(
    recipe_file: Path, words: tuple[str, ...], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", str(recipe_file), *words, f"data.train.path={pictures}", f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "is in no folder of a class there" in error
    assert "Traceback" not in error
