"""The command line: what each verb prints, and every mistake of a user as one clear message with exit code 2."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import amradio
from amradio import UserError
from amradio import distill as run_distill
from amradio.__main__ import main
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.training import Trainer, load_teachers
from processes import Ended
from runs import files

BROKEN = b"\xff\xd8\xff\xe0 this was a JPEG once"


def test_help_names_every_verb_and_is_a_module_of_its_own():
    ended = subprocess.run([sys.executable, "-m", "amradio", "--help"], capture_output=True, text=True, check=True)
    for verb in ("quickstart", "distill", "teachers", "students", "doctor"):
        assert verb in ended.stdout
    assert ended.stderr == ""


@pytest.mark.parametrize("verb", ["quickstart", "distill", "teachers", "students", "doctor"])
def test_every_verb_has_its_help(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert f"amradio {verb}" in capsys.readouterr().out


def test_listings(capsys):
    assert main(["teachers"]) == 0
    printed = capsys.readouterr().out
    for word in ("clip", "dinov2", "sam", "licence", "openai/clip-vit-large-patch14-336"):
        assert word in printed
    assert main(["students"]) == 0
    printed = capsys.readouterr().out
    for word in ("vit", "tiny", "giant", "M parameters"):
        assert word in printed
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("CPU", "GPU", "hub cache", "torch", "transformers"):
        assert word in printed


@pytest.mark.slow
def test_a_dry_run_prints_recipe_teachers_network_and_data_and_writes_nothing(recipe_file, tmp_path, capsys):
    before = files(tmp_path)
    assert main(["distill", str(recipe_file), "seed=17", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for words in ("seed: 17", "learning_rate: 0.001", "dinov2", "head sam", "24 images in", "12 steps on cpu in float32 would be written"):
        assert words in " ".join(printed.split())
    for line in printed[printed.index("\nTeachers") :].splitlines():  # what stands before is a recipe
        assert len(line.rstrip()) <= 80 or len(max(line.split(), key=len)) > 60, "only a long name may be beyond the page"
    assert files(tmp_path) == before


@pytest.mark.slow
def test_what_a_dry_run_prints_is_a_recipe(recipe_file, tmp_path, capsys):
    main(["distill", str(recipe_file), "--dry-run"])
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed[: printed.index("\nTeachers")])
    assert amradio.Recipe.load(str(tmp_path / "printed.yaml")) == amradio.Recipe.load(str(recipe_file))


@pytest.mark.slow
def test_a_run_writes_what_it_promises_and_its_config_is_itself_a_recipe(recipe_file, tmp_path, capsys):
    assert main(["distill", str(recipe_file)]) == 0
    run = tmp_path / "run"
    written = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert {
        "config.yaml",
        "environment.json",
        "train.log",
        "metrics.jsonl",
        "checkpoints/last",
        "checkpoints/step_000000012/state.json",
        "calibration/stage_0/manifest.json",
        "evaluations/step_000000012/held_out.json",
        "images/first_batch.png",
        "model/config.json",
        "model/model.safetensors",
        "model/README.md",
    } <= written
    assert not [name for name in written if name.endswith(".part")]
    assert amradio.Recipe.load(str(run / "config.yaml")) == amradio.Recipe.load(str(recipe_file))
    before = files(run / "checkpoints")
    assert main(["distill", str(run / "config.yaml")]) == 0
    assert "step 12 of 12" in capsys.readouterr().out
    assert files(run / "checkpoints") == before
    environment = json.loads((run / "environment.json").read_text())
    assert environment["libraries"]["torch"] == torch.__version__.split("+")[0] or environment["libraries"]["torch"] == torch.__version__


# one message, exit code 2, nothing written


@pytest.fixture
def refused(recipe_file: Path, tmp_path: Path, capsys) -> Callable[..., list[str]]:
    """Runs `distill` with some words; the problems it prints, after the checks that all refusals share."""

    def run(*words: str, own_file: Path | None = None) -> list[str]:
        before = files(tmp_path)
        capsys.readouterr()
        assert main(["distill", str(own_file or recipe_file), *words]) == 2
        printed = capsys.readouterr()
        assert all(line.startswith(("amradio distill", "looking at", "loading teacher")) for line in printed.out.splitlines())
        assert "Traceback" not in printed.err
        assert files(tmp_path) == before
        lines = printed.err.splitlines()
        assert all(line.startswith("error: ") for line in lines)
        return [line.removeprefix("error: ") for line in lines]

    return run


def test_unknown_key(refused):
    assert refused("engine.kep=3") == ["engine.kep: there is no such key; did you mean 'keep'?"]


def test_wrong_type(refused):
    (problem,) = refused("optimizer.learning_rate=fast")
    assert problem.startswith("optimizer.learning_rate: ")
    assert "should be a number, found 'fast'" in problem


def test_missing_recipe_file(refused, tmp_path):
    (problem,) = refused(own_file=tmp_path / "nowhere.yaml")
    assert "nowhere.yaml: there is no such file" in problem


@pytest.mark.slow
def test_missing_folder_of_images(refused, tmp_path):
    (problem,) = refused(f"data.train.path={tmp_path / 'nowhere'}")
    assert problem.startswith("data.train: ")
    assert "there is no such folder" in problem


@pytest.mark.slow
def test_empty_folder_of_images(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (problem,) = refused(f"data.val.path={tmp_path / 'empty'}")
    assert problem.startswith("data.val: ")
    assert "no image" in problem


@pytest.mark.slow
def test_folder_of_broken_images(refused, tmp_path):
    for number in range(3):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{number}.jpg").write_bytes(BROKEN)
    (problem,) = refused(f"data.train.path={tmp_path / 'broken'}")
    assert problem.startswith("data.train: ")
    assert "not one can be read" in problem
    assert "0.jpg" in problem


def test_teacher_without_network_and_local_files(refused, monkeypatch, tmp_path):
    from amradio.teachers import loading

    monkeypatch.setattr(loading, "hub_answers", lambda *rest: False)
    monkeypatch.setattr(loading.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (problem,) = refused("teachers.clip.model=openai/clip-vit-large-patch14-336")
    assert problem.startswith("teachers.clip: teacher 'openai/clip-vit-large-patch14-336'")
    assert "cannot be reached" in problem


@pytest.mark.slow
def test_teacher_folder_that_is_none_and_one_of_another_family(refused, tmp_path, teacher_folders):
    (problem,) = refused(f"teachers.clip.model={tmp_path / 'nowhere'}")
    assert "there is no such folder" in problem
    (problem,) = refused(f"teachers.clip.model={teacher_folders['sam']}")
    assert problem.startswith("teachers.clip: ")
    assert "sam" in problem


def test_all_of_these_at_once(refused, tmp_path):
    nowhere = tmp_path / "nowhere"
    found = refused(f"data.train.path={nowhere}", f"teachers.clip.model={nowhere}", f"teachers.sam.model={nowhere}")
    assert [problem.split(":")[0] for problem in found] == ["data.train", "teachers.clip", "teachers.sam"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    found = refused(f"data.train.path={nowhere}", f"teachers.clip.model={nowhere}")
    assert [problem.split(":")[0] for problem in found] == ["out", "data.train"]


@pytest.mark.slow
def test_size_that_the_student_cannot_take(refused):
    (problem,) = refused("stages.0.partitions.0.image_size=36")
    assert problem == "stages.0.partitions.0.image_size: the student cannot take 36 px; the nearest legal size is 32"


@pytest.mark.slow
def test_pieces_that_do_not_divide_the_batch(refused):
    (problem,) = refused("engine.accumulate=3")
    assert problem.startswith("engine.accumulate: 3 does not divide")


@pytest.mark.slow
def test_out_folder_in_use(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    (problem,) = refused()
    assert problem.startswith("out: ")
    assert "nothing in it was touched" in problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_on_a_machine_without(refused):
    (problem,) = refused("engine.device=cuda")
    assert problem.startswith("engine.device: cuda was asked for")
    assert "engine.device=cpu" in problem


def test_a_device_that_is_none(refused):
    (problem,) = refused("engine.device=gpu")
    assert "'gpu' is not a device" in problem


def test_a_teacher_object_that_only_python_can_pass(refused):
    (problem,) = refused("teachers.mine={type: custom}")
    assert problem.startswith("teachers.mine: ")
    assert "amradio.distill(recipe, teachers=" in problem


@pytest.mark.slow
def test_a_dry_run_refuses_the_same(recipe_file, tmp_path, capsys):
    for word in (f"data.train.path={tmp_path / 'nowhere'}", "stages.0.partitions.0.image_size=36", "engine.kep=3"):
        assert main(["distill", str(recipe_file), word, "--dry-run"]) == 2
        assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]) == 1


def test_debug_shows_the_traceback(recipe_file):
    with pytest.raises(UserError):
        main(["--debug", "distill", str(recipe_file), "engine.kep=3"])


@pytest.mark.slow
def test_the_process_ends_with_2(amradio: Callable[..., Ended], recipe_file):
    ended = amradio("distill", recipe_file, "engine.kep=3")
    assert (ended.code, ended.output) == (2, "amradio distill: starting\n")
    assert ended.errors == "error: engine.kep: there is no such key; did you mean 'keep'?\n"


def test_no_verb_and_no_words(capsys):
    for words in ([], ["distill"], ["distil", "x.yaml"]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert "usage: amradio" in capsys.readouterr().err


# amradio.load


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures, teacher_folders):
    """The run folder of two steps, and its recipe."""
    folder = tmp_path_factory.mktemp("trained")
    words = [
        f"data={{train: {{type: folder, path: {pictures}}}, num_workers: 0}}",
        f"teachers={{clip: {{type: clip, model: {teacher_folders['clip']}}}, dino: {{type: dinov2, model: {teacher_folders['dino']}}}}}",
        "student={type: vit, dim: 32, depth: 2, num_heads: 2, patch_size: 8, max_image_size: 64}",
        "stages=[{steps: 2, partitions: [{image_size: 32, batch_size: 4}]}]",
        "normalize.batches=2",
        "engine={device: cpu, precision: float32}",
        f"out={folder / 'run'}",
    ]
    recipe = amradio.Recipe.load(*words)
    return run_distill(recipe), recipe


@pytest.mark.slow
def test_load_takes_the_run_and_the_model_folder(trained):
    run, _ = trained
    a, b = amradio.load(run), amradio.load(str(run / "model"))
    images = torch.rand(2, 3, 32, 48)
    for one, other in zip(a(images), b(images), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert a.heads == ("clip", "dino")
    assert (a.patch_size, a.summary_dim, a.spatial_dim) == (8, 64, 32)
    assert a.nearest_size(37, 63) == (40, 64)
    assert a(images).summary.shape == (2, 64)
    assert a(images).spatial.shape == (2, 4, 6, 32)
    assert not a.training
    assert not any(parameter.requires_grad for parameter in a.parameters())


@pytest.mark.slow
def test_loaded_heads_speak_raw_teacher_space(trained):
    run, recipe = trained
    trainer = Trainer(recipe, load_teachers(recipe, {}), Processes(torch.device("cpu")), Log(None))
    assert trainer.resume() == 2
    task = trainer.context.task.eval()
    images = torch.rand(3, 3, 32, 32)
    model = amradio.load(run)
    found = model(images, heads=["clip", "dino"])
    assert set(found) == {"backbone", "clip", "dino"}
    with torch.no_grad():
        inside = task.network(images, None, ["clip", "dino"])
    for name in ("clip", "dino"):
        for kind in ("summary", "spatial"):
            wanted = task.normalizers.of(name, kind).to_raw(inside[name].of(kind))
            torch.testing.assert_close(getattr(found[name], kind), wanted, rtol=1e-4, atol=1e-4)
    assert model(images, heads=[]).keys() == {"backbone"}


def test_intermediates_of_a_loaded_model(trained):
    model, images = amradio.load(trained[0]), torch.rand(1, 3, 32, 32)
    last = model.intermediates(images, [0, -1])[1]
    torch.testing.assert_close(last.spatial, model(images).spatial)


def test_wrong_use_of_a_model_is_one_message(trained):
    model, images = amradio.load(trained[0]), torch.rand(1, 3, 32, 32)
    with pytest.raises(UserError, match="no head 'clp'; did you mean 'clip'"):
        model(images, heads=["clp"])
    with pytest.raises(UserError, match="nearest is 32x32"):
        model(torch.rand(1, 3, 33, 32))
    for wrong in (images[0], (images * 255).byte(), images[:, :2]):
        with pytest.raises(UserError, match="images: expected float"):
            model(wrong)


def damaged(trained, tmp_path, change: Callable[[Path], None]) -> str:
    """What `load` says of a copy that `change` damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((trained[0] / "model" / name).read_bytes())
    change(folder)
    with pytest.raises(UserError) as caught:
        amradio.load(folder)
    return str(caught.value)


def edit_weights(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return edit


def edit_config(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


BLOCK = "student.blocks.0.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (truncate, "not a whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors: the file is empty; copy or download it again"),
        (lambda folder: (folder / "model.safetensors").unlink(), "the folder is not complete"),
        (lambda folder: (folder / "config.json").unlink(), "there is no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"format": "amrad'), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: an object is expected, found a list"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "model_type 'bert', which is no student"),
        (edit_weights(lambda weights: weights.pop(BLOCK)), f"missing: {BLOCK}"),
        (edit_weights(lambda weights: weights.update(more=torch.zeros(1))), "not known: more"),
        (edit_weights(lambda weights: weights.update({BLOCK: torch.zeros(3, 4)})), f"wrong shape: {BLOCK} is [3, 4], not [128, 32]"),
        (edit_config(lambda config: config["student"].update(depth=3)), "missing: student.blocks.2."),
        (edit_config(lambda config: config["student"].update(dim=64)), "wrong shape: student."),
        (edit_config(lambda config: config["student"].update(dimm=64)), "student.dimm: there is no such key; did you mean 'dim'"),
        (edit_config(lambda config: config.pop("num_summaries")), "num_summaries: this key is required and missing"),
        (edit_config(lambda config: config["heads"].pop("dino")), "not known: heads.dino"),
    ],
)
def test_damaged_model_folders_are_refused(trained, tmp_path, change, said):
    assert said in damaged(trained, tmp_path, change)


def test_a_path_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        amradio.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"there is no config\.json"):
        amradio.load(tmp_path)
