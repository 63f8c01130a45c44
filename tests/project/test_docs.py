"""What the documents say is so: commands, recipes, snippets, links, the tree and the reference of keys."""

import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import amradio
from amradio.__main__ import main
from amradio.commands.parser import parser
from amradio.data import SourceSettings
from amradio.data.decode import decode
from amradio.distillation.losses import Loss
from amradio.downstream.detection.settings import DetectionRecipe
from amradio.downstream.vlm.settings import VlmRecipe
from amradio.evaluation.benchmarks import BenchmarkPaths
from amradio.evaluation.suite import Suite
from amradio.formats.model_folder import write_folder
from amradio.network import NetworkConfig
from amradio.recipe import Recipe
from amradio.recipes import FOLDER, shipped
from amradio.students import Radio1dSettings, StudentSettings
from amradio.teachers import TEACHERS, EmbeddedSettings, TeacherSettings
from amradio.training.initialization import network_config
from amradio.yaml12 import parse_yaml
from data_folders import make_shards

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VLM_FILES = [found.path for found in shipped() if found.kind == "vlm"]
DETECTION_FILES = [found.path for found in shipped() if found.kind == "detection"]
EVALUATION_FILES = [found.path for found in shipped() if found.kind == "evaluation"]
RECIPES = [found.path for found in shipped() if found.kind == "recipe"]
OWN_TEACHER, OWN_STUDENT = "class MyResNet", "def my_student"


def blocks(language: str, documents: list[Path] = DOCUMENTS) -> list[tuple[str, str]]:
    """(where, text) of the fenced blocks in a language."""
    found = []
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.S | re.M):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{document.name}:{line}", match[1]))
    return found


def commands() -> list[tuple[str, str]]:
    """(where, command) of every line in bash blocks and every `Command:` at the head of a recipe, continuation lines joined."""
    found = [(where, line) for where, text in blocks("bash") for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    for recipe in (*RECIPES, *DETECTION_FILES, *VLM_FILES):
        head = [line.lstrip("# ") for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        start = next(i for i, line in enumerate(head) if line.startswith("Command:"))
        end = next(i for i, line in enumerate(head) if i > start and re.match(r"[A-Z][\w ]+:", line))
        text = " ".join(head[start:end]).removeprefix("Command:").replace("\\ ", "")
        starts = [match.start() for match in re.finditer(r"(?:^|(?<= ))(?:torchrun|(?<!-m )amradio) ", text)]
        found += [(recipe.name, text[a:b].split("(")[0]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return found


def arguments(command: str) -> list[str] | None:
    """What follows `amradio` in a command line, None where it calls something else."""
    words = shlex.split(command, comments=True)
    if "amradio" not in words[:1] and not (words[:1] == ["torchrun"] and "amradio" in words):
        return None
    return words[words.index("amradio") + 1 :]


def tool_of(name: str) -> ModuleType:
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_reference_of_keys_is_up_to_date() -> None:
    tool = tool_of("make_reference")
    assert [page.file.name for page in tool.PAGES] == ["recipes.md", "evaluations.md", "detection.md", "vlm.md"]
    assert tool.outdated() == {}, "run python tools/make_reference.py"


def test_numbers_are_those_of_the_result_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tool_of("make_numbers")
    used = {match[2] for path in tool.documents() for match in tool.BLOCK.finditer(path.read_text(encoding="utf-8"))}
    assert used == set(tool.PARTS)
    assert tool.outdated() == {}, "run python tools/make_numbers.py"
    for path in tool.RESULTS.glob("*.json"):  # another result makes another document
        (tmp_path / path.name).write_text(re.sub(r"\d\.\d+", "7.7777", path.read_text(encoding="utf-8")))
    monkeypatch.setattr(tool, "RESULTS", tmp_path)
    assert {path.name for path in tool.outdated()} == {
        "README.md",
        "ablations.md",
        "choosing.md",
        "detection.md",
        "quickstart.md",
        "vlm.md",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_valid_and_opens_with_command_cost_and_result(path: Path) -> None:
    assert Recipe.load(str(path)).out.startswith("runs/")
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#")).lower()
    assert all(word in head for word in ("command:", "cost", "result"))


@pytest.mark.parametrize("path", DETECTION_FILES, ids=lambda path: path.name)
def test_every_recipe_of_a_detector_is_valid_and_opens_with_command_cost_and_result(path: Path) -> None:
    assert DetectionRecipe.load(str(path), "model=runs/student").out.startswith("runs/")
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#")).lower()
    assert all(word in head for word in ("command:", "cost", "result"))


@pytest.mark.parametrize("path", VLM_FILES, ids=lambda path: path.name)
def test_every_recipe_of_a_vision_language_model_is_valid_and_opens_with_command_cost_and_result(path: Path) -> None:
    assert VlmRecipe.load(str(path), "model=runs/student").out.startswith("runs/")
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#")).lower()
    assert all(word in head for word in ("command:", "cost", "result"))


@pytest.mark.parametrize("path", EVALUATION_FILES, ids=lambda path: path.name)
def test_every_evaluation_file_is_valid_and_opens_with_command_cost_and_result(path: Path) -> None:
    assert Suite.load(str(path)).evaluations
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#")).lower()
    assert all(word in head for word in ("command:", "cost", "result"))


@pytest.mark.parametrize(("where", "command"), commands(), ids=lambda word: word if len(word) < 40 else word[:40])
def test_commands_name_verbs_targets_and_recipes_that_exist(where: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), where
    if words[:1] == ["python"]:
        assert (ROOT / words[1]).is_file(), where
    found = arguments(command)
    if found is None:
        return
    options = parser()[0].parse_args(found)
    if options.verb == "evaluate" and options.words and options.suite is None:  # words of a suite: commands/test_suites.py
        assert Suite.load(*options.words), where
    if options.verb == "distill":
        assert Recipe.load(*options.words), where
    if options.verb == "detect":
        assert DetectionRecipe.load(*options.words), where
    if options.verb == "vlm" and options.action == "train":
        assert VlmRecipe.load(*options.words), where


@pytest.mark.parametrize(("where", "text"), blocks("python"), ids=lambda word: word if len(word) < 40 else "")
def test_python_blocks_compile(where: str, text: str) -> None:
    compile(text, where, "exec")


@pytest.mark.slow
def test_custom_teacher_of_extending_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {process}, raising=False)  # one core: no loading processes to wait for
    snippet = next(text for _, text in blocks("python") if OWN_TEACHER in text)
    found: dict = {"__name__": "extending"}
    exec(snippet, found)
    assert found["model"].heads == ("mine",)
    features = found["model"](torch.rand(1, 3, 64, 64), heads=["mine"])["mine"]
    assert features.summary.shape == (1, 512)
    assert (tmp_path / found["folder"] / "model" / "config.json").is_file()


def write_quickstart(folder: Path) -> None:
    """A model folder with the heads of the quickstart and a tiny student."""
    teachers = {name: EmbeddedSettings.model_validate({"name": name}).build() for name in ("clip", "dino", "sam")}
    recipe = Recipe.load(
        "teachers={clip: {type: embedded, name: clip}, dino: {type: embedded, name: dino}, sam: {type: embedded, name: sam}}",
        "data.train=scenes",
        "student={type: vit, dim: 32, depth: 6, num_heads: 2}",
        "out=unused",
    )
    config = network_config(recipe, teachers)
    write_folder(folder, config, config.build(), {"step": 1, "num_steps": 1, "data": "scenes", "agreement": {}})


@pytest.mark.slow
def test_custom_student_of_extending_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {process}, raising=False)  # as above
    snippet = next(text for _, text in blocks("python", [ROOT / "docs" / "extending.md"]) if OWN_STUDENT in text)
    found: dict = {"__name__": "extending"}
    exec(snippet, found)
    features = found["model"](torch.rand(1, 3, 64, 96), heads=["clip", "sam"])
    assert features["backbone"].spatial.shape == (1, 4, 6, 256)
    assert features["sam"].spatial.shape[:3] == (1, 4, 6)


def is_tested_elsewhere(text: str) -> bool:
    """Files of the package in extending.md (`run_example`), the objects there, and the call that `amradio export` prints for timm."""
    return text.startswith("# src/") or OWN_TEACHER in text or OWN_STUDENT in text or "timm.create_model" in text


def lines_of(document: str | tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that are left when all Python blocks of a document, or of several, were run in turn, in a folder with a model, a picture
    and a folder of pictures."""
    monkeypatch.chdir(folder)
    write_quickstart(folder / "runs" / "quickstart")
    ordered = NetworkConfig(student=Radio1dSettings(dim=32, depth=2, num_heads=2, decoder_depth=1, max_image_size=128), num_summaries=1)
    write_folder(folder / "C-RADIOv4-1D-H", ordered, ordered.build(), {"step": 1, "num_steps": 1, "data": "nothing"})
    pixels = torch.randint(0, 256, (60, 90, 3), dtype=torch.uint8).numpy()
    (folder / "photos").mkdir()
    for path in (folder / "photo.jpg", folder / "photos" / "a.jpg", folder / "photos" / "b.jpg"):
        Image.fromarray(pixels).save(path)
    embedding = [command for where, command in commands() if command.startswith("amradio embed") and where.startswith(document)]
    if embedding:
        make_shards(folder / "shards", (1,) * 100)
    for command in embedding:
        assert main([*shlex.split(command)[1:], "--num-workers", "0"]) == 0
    found: dict = {}
    for where, text in blocks("python"):
        if where.startswith(document) and not is_tested_elsewhere(text):
            exec(compile(text, where, "exec"), found)
    return found


def test_every_document_with_python_is_run() -> None:
    left = {where.partition(":")[0] for where, text in blocks("python") if not is_tested_elsewhere(text)}
    assert left == {
        "README.md",
        "models.md",
        "embedding.md",
        "detection.md",
        "vlm.md",
        "quickstart.md",
    }  # those of detection and vlm: in downstream/


@pytest.mark.slow
def test_lines_of_the_readme_and_of_the_page_on_the_quickstart_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines_of(("README.md", "quickstart.md"), tmp_path, monkeypatch)
    assert found["features"].keys() == {"backbone", "clip", "sam"}
    assert found["features"]["backbone"].summary.shape[0] == 1
    assert found["heat"].shape[:2] == (1, 2)
    assert found["masks"].shape == (1, 1, 60, 90)
    with Image.open(tmp_path / "shown.png") as drawn:
        assert drawn.width > 256


@pytest.mark.slow
def test_lines_of_the_page_on_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines_of("models.md", tmp_path, monkeypatch)
    assert len(found["every"]) == 6
    assert found["pairs"][0][1].shape == (2, 6, 32)
    assert found["similarity"].shape == (2, 2)
    assert found["large"].shape == (1, 2, 480, 640)
    assert found["shares"].sum(1).allclose(torch.ones(()))
    assert found["clicked"].masks.shape == (2, 1, 90, 120)
    assert torch.equal(found["first_five"], found["code"][:, :5])
    assert found["decoded"].shape == (2, 4, 6, 32)


@pytest.mark.slow
def test_lines_of_the_page_on_embedding_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines_of("embedding.md", tmp_path, monkeypatch)
    assert found["summary"].shape == (len(found["keys"]), found["model"].summary_dim)
    assert found["spatial"].shape == (2, found["model"].spatial_dim)
    assert found["about"]["heads"] == '["clip"]'
    assert len(found["batch"].keys) == 2


def test_the_error_in_the_readme_is_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- error -->\n```text\n\$ amradio (.*?)\n(.*?)```", text, re.S)
    assert block is not None
    assert main(shlex.split(block[1])) == 2
    assert capsys.readouterr().err == block[2]


@pytest.mark.parametrize(("where", "text"), blocks("yaml"), ids=lambda word: word if len(word) < 40 else "")
def test_yaml_blocks_are_recipes_or_parts_of_one(where: str, text: str, tmp_path: Path) -> None:
    found = parse_yaml(text, where)
    if "evaluations" in found:
        (tmp_path / "evaluation.yaml").write_text(text)
        assert Suite.load(str(tmp_path / "evaluation.yaml")).evaluations
        return
    if set(found) <= set(BenchmarkPaths.model_fields):
        assert BenchmarkPaths.model_validate(found)
        return
    assert set(found) <= set(Recipe.model_fields), where
    if {"data", "teachers", "student", "out"} <= set(found):
        (tmp_path / "recipe.yaml").write_text(text)
        assert Recipe.load(str(tmp_path / "recipe.yaml")) == Recipe.load(str(FOLDER / f"{Path(found['out']).name}.yaml"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], f"{document.name}: {target}"


def test_the_page_on_design_shows_the_order_of_rooms_as_it_is_checked() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    rooms = [[room.removeprefix("amradio.") for room in layer.split(" | ")] for layer in contract["layers"]]
    design = next(text for _, text in blocks("text", [ROOT / "docs" / "design.md"]))
    assert [re.findall(r"\w+", line.split("  ")[0]) for line in design.splitlines()] == rooms


def test_the_page_on_licences_names_every_kind_of_teacher() -> None:
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    kinds = {settings.model_fields["type"].default for settings in TEACHERS} - {"custom"}
    assert kinds <= set(re.findall(r"`(\w+)`", text))


def run_example(name: str) -> dict:
    """The names that the example of extending.md defines, run as if it stood in the file that its first line names."""
    for _, text in blocks("python", [ROOT / "docs" / "extending.md"]):
        module = text.splitlines()[0].removeprefix("# src/").removesuffix(".py").replace("/", ".")
        if module.endswith(f".{name}"):
            known = vars(importlib.import_module(module)) if importlib.util.find_spec(module) else {}
            found = {**known, "__name__": module, "__package__": module.rpartition(".")[0]}
            future = "from __future__ import annotations\n"  # as the file has it, where it has it
            is_lazy = future in Path(known["__file__"]).read_text(encoding="utf-8") if known else False
            exec(future * is_lazy + text, found)
            return found
    raise AssertionError(f"extending.md has no example {name}")


def test_example_of_a_teacher() -> None:
    settings = run_example("colour")["ColourSettings"]
    assert issubclass(settings, TeacherSettings)
    teacher = settings().build()
    found = teacher(torch.ones(2, 3, 32, 48))
    assert found.summary.shape == (2, teacher.summary_dim)
    assert found.spatial.shape == (2, 2, 3, teacher.spatial_dim)
    assert torch.allclose(found.summary, torch.tensor(2.0))


def test_example_of_a_student() -> None:
    settings = run_example("patches")["PatchesSettings"]
    assert issubclass(settings, StudentSettings)
    student = settings(dim=8).build(3)
    found = student(torch.rand(2, 3, 32, 48))
    assert found.summary.shape == (2, 3 * student.summary_dim)
    assert found.spatial.shape == (2, 2, 3, student.spatial_dim)
    assert student.nearest_size(30, 3) == (32, 16)
    assert settings.catalogue()[0].parameters > 0


def test_example_of_a_loss() -> None:
    loss: Loss = run_example("losses")["L1Settings"]().build()
    assert torch.equal(loss(torch.ones(2, 3, 3, 4), torch.zeros(2, 3, 3, 4)), torch.ones(2))
    assert loss(torch.rand(2, 4), torch.rand(2, 4)).shape == (2,)


def test_example_of_a_source(pictures: Path) -> None:
    settings = run_example("listing")["ListingSettings"]
    assert issubclass(settings, SourceSettings)
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.jp*g"))
    listing = pictures / "list.txt"
    listing.write_text("\n".join(names[:3]) + "\n")
    try:
        source = settings(path=str(listing)).build()
    finally:
        listing.unlink()
    source.check()
    assert [source.key(source.nth(n)) for n in range(source.count())] == names[:3]
    assert decode(source.read(0)) is not None
    with pytest.raises(amradio.UserError, match="no such file"):
        settings(path=str(listing)).build()
