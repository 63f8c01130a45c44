"""Words are checked, and listings printed, without torch: `amradio --help` or a misspelt key is answered at once."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "transformers", "timm", "open_clip", "webdataset", "datasets", "pandas", "scipy")
TEACHERS = "\n".join(
    f"  {name}: {{type: {name}, model: somebody/some-model}}" for name in ("clip", "siglip", "dinov2", "dinov3", "sam", "radio", "timm")
)
RECIPE = f"""
data: {{train: {{type: mixture, sources: {{a: {{type: webdataset, path: x}}, b: {{type: folder, path: y}}}}, weights: {{a: 1.0, b: 2.0}}}}}}
teachers:
{TEACHERS}
  small: {{type: embedded, name: sam}}
  open: {{type: open_clip, model: ViT-H-14}}
student: {{type: vit, size: tiny, train: {{type: lora}}}}
loss: {{summary: cosine, spatial: {{type: match, cosine: 0.9}}}}
normalize: {{summary: none, spatial: global}}
heads: {{spatial: {{type: attention, depth: 1}}}}
out: runs/x
"""
STUDENTS = ("student=eradio", "student={type: timm, model: convnext_base}", "student=custom", "student={type: model, path: runs/y}")


def heavy_after(program: str, folder: Path) -> list[str]:
    """The heavy modules that a new interpreter has imported after `program`; it must end well."""
    text = f"{program}\nimport sys\nprint('HEAVY', *(name for name in {HEAVY} if name in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.rpartition("HEAVY")[2].split()


@pytest.mark.slow
def test_every_kind_of_settings_is_read_without_torch(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    loads = "\n".join(f"Recipe.load('recipe.yaml', {word!r})" for word in ("seed=1", *STUDENTS))
    assert heavy_after(f"from amradio import Recipe, UserError\n{loads}", tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["distill", "recipe.yaml", "teachers.clip.wieght=1", "student.dept=3", "stages.0.steps=-5", "loss.spatial=cosin"],
        ["distill", "no.yaml"],
        ["quickstart", "studnet.size=tiny"],
    ],
    ids=lambda words: words[0],
)
def test_a_mistake_in_a_recipe_is_answered_without_torch(words, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    program = f"from amradio.__main__ import main\nassert main({words!r}) == 2"
    assert heavy_after(program, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VitSettings", "EradioSettings"])
def test_the_catalogue_of_students_counts_what_is_built(name):
    import torch

    from amradio import students

    settings = getattr(students, name)
    for row in settings.catalogue():
        with torch.device("meta"):
            student = settings.model_validate({"size": row.size}).build(num_summaries=4)
        assert row.parameters == sum(parameter.numel() for parameter in student.parameters()), row.size
        assert (row.dim, row.patch_size) == (student.spatial_dim, student.patch_size), row.size


@pytest.mark.parametrize("changes", [{"layer_scale": 1e-5}, {"num_registers": 0, "patch_size": 14}, {"dim": 96, "num_heads": 2}])
def test_the_parameters_of_a_vit_are_counted_by_formula(changes):
    import torch

    from amradio.students import VitSettings

    settings = VitSettings.model_validate({"size": "tiny", "max_image_size": 256} | changes)
    with torch.device("meta"):
        student = settings.build(3)
    assert settings.count_parameters(3) == sum(parameter.numel() for parameter in student.parameters())


def test_the_names_that_torch_keeps_are_listed():
    from torch import nn

    from amradio.heads.names import KEPT_BY_TORCH

    assert {name for name in dir(nn.ModuleDict()) if not name.startswith("_")} | {"smart_apply"} == KEPT_BY_TORCH


def test_settings_that_are_imported_later_are_in_the_schema_and_their_problems_among_the_others(tmp_path):
    from amradio import Recipe, UserError
    from amradio.evaluation.suite import Suite

    assert "Suite" in str(Recipe.model_json_schema()["$defs"]["EvaluateSettings"]["properties"]["suite"])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    wrong = "evaluate.suite={evaluations: {a: {type: throughput, seconts: 1}}, devise: cpu}"
    with pytest.raises(UserError) as caught:
        Recipe.load(str(tmp_path / "recipe.yaml"), wrong, "sed=1")
    text = str(caught.value)
    for key, name in (("evaluate.suite.evaluations.a.seconts", "seconds"), ("evaluate.suite.devise", "device"), ("sed", "seed")):
        assert f"{key}: there is no such key; did you mean '{name}'?" in text
    recipe = Recipe.load(str(tmp_path / "recipe.yaml"), "evaluate.suite={evaluations: {a: throughput}}")
    assert isinstance(recipe.evaluate.suite, Suite)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
