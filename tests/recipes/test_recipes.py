"""Every recipe that is shipped runs two steps on a CPU, with tiny teachers of the same types in place of the real ones."""

from pathlib import Path

import pytest

import amradio
import tiny
from amradio.config import to_yaml
from amradio.formats.model_folder import write_folder
from amradio.recipe import Recipe
from amradio.recipes import shipped
from amradio.training import load_teachers
from amradio.training.initialization import network_config
from amradio.yaml12 import parse_yaml, write_yaml
from runs import losses

SHIPPED = [found.path for found in shipped() if found.kind == "recipe"]

BUILDERS = {
    "clip": tiny.tiny_clip,
    "dinov2": tiny.tiny_dinov2,
    "dinov3": tiny.tiny_dinov3,
    "open_clip": tiny.tiny_open_clip,
    "radio": tiny.tiny_radio,
    "sam": tiny.tiny_sam,
    "sam3": tiny.tiny_sam3,
    "siglip": tiny.tiny_siglip,
    "timm": tiny.tiny_timm,
}
EMBEDDED = {"clip": "clip", "dino": "dinov2", "sam": "sam"}
SMALL_STUDENT = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "patch_size": 8, "max_image_size": 64}
SMALL_ERADIO = {
    "size": "xxxtiny",
    "dim": 8,
    "stem_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2],
    "window_size": 3,
    "cpb_hidden_dim": 8,
}
SMALL_STUDENTS = {"vit": SMALL_STUDENT | {"start_from": None}, "eradio": SMALL_ERADIO}
STEPS = 2


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory):
    """type -> folder of a tiny teacher, made when it is asked for."""
    made: dict[str, Path] = {}

    def folder_of(type_: str) -> Path:
        if type_ not in made:
            made[type_] = BUILDERS[type_](tmp_path_factory.mktemp("stand_ins") / type_)
        return made[type_]

    return folder_of


def shrunk(recipe: dict, pictures: Path, stand_ins) -> dict:
    """The same recipe: as many stages, partitions, teachers, kinds, heads and losses; small numbers, pictures that are here."""
    for teacher in recipe["teachers"].values():
        kind = EMBEDDED[teacher.pop("name")] if teacher["type"] == "embedded" else teacher["type"]
        for key in ("input_size", "pretrained", "revision"):
            teacher.pop(key, None)
        teacher |= {"type": kind, "model": str(stand_ins(kind))}
    recipe["student"] |= SMALL_STUDENTS.get(recipe["student"]["type"], {})
    if recipe["student"].get("train", {}).get("type") == "last_blocks":
        recipe["student"]["train"]["count"] = 1
    for key in ("train", "val"):
        if recipe["data"].get(key):
            recipe["data"][key] = {"type": "folder", "path": str(pictures)}
    for stage in recipe["stages"]:
        stage["steps"] = 1 if len(recipe["stages"]) > 1 else STEPS
        stage["frozen_steps"] = min(stage["frozen_steps"], stage["steps"])
        for partition in stage["partitions"]:
            sizes = None if partition["image_sizes"] is None else [{"size": size} for size in (32, 64)][: len(partition["image_sizes"])]
            shift = min(partition["shift"], 1)
            partition |= {"image_size": 32, "image_sizes": sizes, "shift": shift, "view_size": None, "source": None}
            partition["batch_size"] = 4 if partition["mosaic"] else 2  # a canvas has four images
    for kind in ("summary", "spatial"):
        recipe["heads"][kind] |= {key: 16 for key in ("hidden_dim", "last_hidden_dim") if key in recipe["heads"][kind]}
    recipe["data"] |= {"num_workers": 0} | ({"hold_out": 0.25} if recipe["data"]["hold_out"] else {})
    if recipe["regularize"]["windows"]:
        recipe["regularize"]["windows"] |= {"num_global": 1, "sizes": [2]}
    recipe["normalize"]["batches"] = 1
    recipe["evaluate"] |= {"every": 1, "batches": 1}
    recipe["engine"] |= {"device": "cpu", "log_every": 1, "compile": False}
    return recipe


def model_to_go_on_from(recipe: dict, folder: Path) -> Path:
    """A tiny ViT with random weights and a head for all of the recipe's teachers but the last."""
    names = list(recipe["teachers"])[:-1]
    old = Recipe.model_validate(
        recipe | {"teachers": {name: recipe["teachers"][name] for name in names}, "student": {"type": "vit"} | SMALL_STUDENT}
    )
    config = network_config(old, load_teachers(old, {}))
    write_folder(folder, config, config.build(), {"step": 1, "num_steps": 1, "data": "none", "agreement": {}})
    return folder


def test_recipes_are_shipped():
    assert len(SHIPPED) >= 4


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_opens_with_command_cost_and_result(path):
    Recipe.load(str(path))
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(head).lower()
    for word in ("command:", "cost", "result"):
        assert word in text, word


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_runs_two_steps(path, pictures, stand_ins, tmp_path):
    original = Recipe.load(str(path))
    small = shrunk(parse_yaml(to_yaml(original), path.name), pictures, stand_ins)
    small["out"] = str(tmp_path / "run")
    if small["student"]["type"] == "model":
        small["student"]["path"] = str(model_to_go_on_from(small, tmp_path / "model"))
    (tmp_path / "small.yaml").write_text(write_yaml(small))
    recipe = Recipe.load(str(tmp_path / "small.yaml"))
    assert recipe.teachers.keys() == original.teachers.keys()
    assert recipe.loss == original.loss
    assert [len(stage.partitions) for stage in recipe.stages] == [len(stage.partitions) for stage in original.stages]
    folder = amradio.distill(recipe)
    assert len(losses(folder)) == recipe.num_steps >= STEPS
    model = amradio.load(folder)
    assert set(model.heads) == set(original.teachers)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_smoke_behind_a_recipe_makes_two_steps(path, stand_ins, tmp_path):
    """With tiny teachers of the same types, from words as they stand on a command line."""
    original = Recipe.load(str(path))
    words = [str(path), "smoke", f"out={tmp_path / 'run'}"]
    for name, teacher in original.teachers.items():
        if teacher.type != "embedded":
            words += [f"teachers.{name}.{key}=null" for key in ("input_size", "pretrained") if key in type(teacher).model_fields]
            words += [f"teachers.{name}.model={stand_ins(teacher.type)}", f"teachers.{name}.precision=float32"]
    if original.student.type == "model":
        small = shrunk(parse_yaml(to_yaml(original), path.name), tmp_path, stand_ins)
        words.append(f"student.path={model_to_go_on_from(small, tmp_path / 'model')}")
        words += ["student.train.count=1"] if original.student.train.type == "last_blocks" else []
    else:
        small = SMALL_STUDENTS[original.student.type]
        words += [f"student.{key}={'null' if value is None else value}" for key, value in small.items()]
    folder = amradio.distill(Recipe.load(*words))
    assert len(losses(folder)) == STEPS
    assert set(amradio.load(folder).heads) == set(original.teachers)
