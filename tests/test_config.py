"""Settings: numbers, merging, every problem at once with the nearest name, and files that read back to the same recipe."""

from pathlib import Path

import pydantic
import pytest
import torch

import amradio.recipe
from amradio.config import to_yaml, validate
from amradio.data import DataSettings
from amradio.embedding import EmbedSettings
from amradio.engine.folder import changed_keys
from amradio.engine.settings import EngineSettings
from amradio.errors import UserError, nearest
from amradio.evaluation.suite import Suite
from amradio.network import NetworkConfig, head_name_problem
from amradio.recipe import Recipe
from amradio.words import merge, read_words
from amradio.yaml12 import parse_yaml
from settings_tree import settings_below

MINIMAL = """
data: {train: {type: folder, path: /data/images}}
teachers: {clip: {type: clip, model: somebody/clip}}
student: {type: vit, size: tiny}
out: runs/x
"""


@pytest.fixture
def minimal(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return str(path)


def problems(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        Recipe.load(*words)
    return list(caught.value.problems)


# numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1e3", 1000.0), ("1E+3", 1000.0), ("-2.5e-1", -0.25), (".5", 0.5), ("1.0", 1.0), ("2.", 2.0), (".inf", float("inf"))],
)
def test_floats_are_floats(text, value):
    found = parse_yaml(text, "here")
    assert found == value
    assert isinstance(found, float)


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12), ("-3", -3), ("true", True), ("null", None), ("e4", "e4"), ("'3e-4'", "3e-4"), ("1.2.3", "1.2.3")]
)
def test_other_scalars_stay_what_they_are(text, value):
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_a_learning_rate_of_3e_4_from_a_file_and_from_a_word(minimal, tmp_path):
    file = tmp_path / "rate.yaml"
    file.write_text("optimizer: {learning_rate: 3e-4}\n")
    assert Recipe.load(minimal, str(file)).optimizer.learning_rate == 3e-4
    assert Recipe.load(minimal, "optimizer.learning_rate=3e-4").optimizer.learning_rate == 3e-4


def test_yaml_that_is_none_names_the_file_and_the_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("seed: 1\nout: [runs\n")
    (problem,) = problems(str(path))
    assert str(path) in problem
    assert "line 3" in problem


# merging


def test_words_merge_left_to_right(minimal, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("seed: 5\nengine: {keep: 7, log_every: 3}\n")
    recipe = Recipe.load(minimal, str(other), "seed=6", "engine.keep=9")
    assert (recipe.seed, recipe.engine.keep, recipe.engine.log_every) == (6, 9, 3)
    assert Recipe.load(minimal, "seed=6", "engine.keep=9", str(other)).seed == 5


def test_a_number_reaches_into_a_list():
    assert merge({"stages": [{"steps": 1, "x": 2}, {"steps": 3}]}, {"stages": {"0": {"steps": 5}}}) == {
        "stages": [{"steps": 5, "x": 2}, {"steps": 3}]
    }
    assert merge({"stages": [{"steps": 1}]}, {"stages": {"1": {"steps": 5}}}) == {"stages": [{"steps": 1}, {"steps": 5}]}
    assert merge({"stages": [{"steps": 1}]}, {"stages": [{"steps": 9}]}) == {"stages": [{"steps": 9}]}


def test_stages_0_steps_is_a_key_with_and_without_stages_in_the_file(minimal):
    assert Recipe.load(minimal, "stages=[{steps: 9}, {steps: 8}]", "stages.0.steps=5").num_steps == 13
    assert Recipe.load(minimal, "stages.0.steps=5").num_steps == 5
    assert Recipe.load(minimal, "stages.0.partitions.0.image_size=96").stages[0].partitions[0].image_size == 96


def test_an_item_beyond_the_list_is_one_problem(minimal):
    (problem,) = problems(minimal, "stages=[{steps: 9}]", "stages.4.steps=5")
    assert problem.startswith("stages.4: ")
    assert "stages is a list of 1 item, stages.0" in problem


def test_null_takes_an_entry_away(minimal):
    two = Recipe.load(minimal, "teachers.dino={type: dinov2, model: somebody/dino}")
    assert list(two.teachers) == ["clip", "dino"]
    assert list(Recipe.load(minimal, "teachers.dino={type: dinov2, model: somebody/dino}", "teachers.clip=null").teachers) == ["dino"]
    assert Recipe.load(minimal, "data.val={type: scenes}", "data.val=null").data.val is None


def test_another_type_starts_afresh_and_the_same_type_goes_on(minimal):
    words = (minimal, "loss.spatial={type: match, cosine: 0.5, beta: 3.0}")
    assert Recipe.load(*words, "loss.spatial={type: smooth_l1}").loss.spatial.beta == 1.0
    kept = Recipe.load(*words, "loss.spatial={type: match, smooth_l1: 0.5}").loss.spatial
    assert (kept.cosine, kept.smooth_l1, kept.beta) == (0.5, 0.5, 3.0)


def test_a_bare_word_stands_for_its_type_and_can_be_set_further(minimal):
    assert Recipe.load(minimal, "loss.spatial=mse").loss.spatial.type == "mse"
    assert Recipe.load(minimal, "loss.spatial=smooth_l1", "loss.spatial.beta=2.0").loss.spatial.beta == 2.0


def test_merging_changes_neither_side():
    old, new = {"a": {"b": [1, {"c": 2}]}}, {"a": {"b": {"1": {"c": 3}}}}
    assert merge(old, new) == {"a": {"b": [1, {"c": 3}]}}
    assert old == {"a": {"b": [1, {"c": 2}]}}


def test_a_word_that_is_none(minimal):
    assert "'2x=1'" in problems(minimal, "2x=1")[0]
    assert "no such file" in problems("nowhere.yaml")[0]
    assert "no such file" in problems(minimal, "seed")[0]
    assert read_words(["a.b=x=y"]) == {"a": {"b": "x=y"}}


# values of words


PLAIN = ("set #2", "*.tar", "{0..3}.tar", "/data/{00..99}.tar", "{a,b}/{c,d}", "a: b", "- x", "!x", "&a", "%y", "@z", "a]", "[a]*.tar")
QUOTES = ("'a' b", "'a' and 'b'", "~/x", "x=y", "no", "1:30", "# x", " x", "|", "{a", "[a", "\udce9.jpg", "C:\\x", "a, b", "`ls`", '"', "'")


@pytest.mark.parametrize("text", PLAIN + QUOTES)
def test_a_value_is_plain_text(text):
    assert read_words([f"data.train.path={text}"]) == {"data": {"train": {"path": text}}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        (" 5 ", 5),
        ("1e3", 1000.0),
        ("true", True),
        ("null", None),
        ("~", None),
        ("[1, a b, '3']", [1, "a b", "3"]),
        ("{a: 1, b: {c: [x]}}", {"a": 1, "b": {"c": ["x"]}}),
        ("'null'", "null"),
        ('"a\\tb"', "a\tb"),
        ("''", ""),
        ("'it''s'", "it's"),
        ("{path: 'a}b'}", {"path": "a}b"}),
        ("{path: caf\udce9, 'b\udcff': [\udc80]}", {"path": "caf\udce9", "b\udcff": ["\udc80"]}),
    ],
)
def test_a_value_is_a_number_a_truth_value_null_brackets_or_quoted(text, value):
    found = read_words([f"a={text}"])["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["out="], "the value is empty"),
        (["student={type:", "timm,", "model:", "resnet50}"], "put it into quotes: 'student={type: timm, model: resnet50}'"),
        (["stages=[{steps:", "5},", "{steps:", "6}]", "seed=1"], "put it into quotes: 'stages=[{steps: 5}, {steps: 6}]'"),
        (["student={type: timm"], "the bracket is not closed"),
        (["student={type:timm}"], "write 'type: timm'"),
        (["a." * 3000 + "a=1"], "3,001 parts"),
        (["stages.1234567890.steps=1"], "stages is a list of 1 item"),
        (["stages.²=1"], "stages is a list of 1 item"),
        (["stages.steps=1"], "name an item by its number, as stages.0"),
        (["stages.3.steps=1"], "the next one would be stages.1"),
        (["seed=" + "9" * 5000], "5,000 characters"),
    ],
)
def test_words_that_are_refused(words, what):
    with pytest.raises(UserError) as caught:
        read_words(words, {"stages": [{"steps": 2}]})
    (found,) = caught.value.problems
    assert what in found
    assert len(found) < 400


def test_recipes_in_other_encodings(minimal, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_bytes("out: größe\n".encode("utf-16"))
    assert Recipe.load(minimal, str(path)).out == "größe"
    path.write_bytes("\ufeffout: größe\r\n".encode())
    assert Recipe.load(minimal, str(path)).out == "größe"
    path.write_bytes("seed: 1\n# größe\n".encode("latin-1"))
    assert "byte 13 (0xf6, line 2) is not UTF-8" in problems(minimal, str(path))[0]
    path.write_bytes(b"\x80\x02}q\x00.")
    assert "not UTF-8" in problems(minimal, str(path))[0]


# problems


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("teachers.clip.wieght=2", "did you mean 'spatial_weight' or 'summary_weight'?"),
        ("optimizer.lr=1", "did you mean 'learning_rate'?"),
        ("lr=1", "did you mean 'optimizer.learning_rate'?"),
        ("batch_size=8", "did you mean 'stages.0.partitions.0.batch_size'?"),
        ("epochs=3", "did you mean 'stages.0.steps'?"),
        ("student=resnet50", "a model of timm is written {type: timm, model: resnet50}"),
        ("student=7", "student: should be a mapping of keys to values, found 7"),
        ("stages.0.steps=many", "stages.0.steps: should be an integer, found 'many'"),
        ("stages.0.steps='5'", "found the text '5' (take its quotes away)"),
        ("stages.0.steps=1.5", "found 1.5"),
        ("out=null", "out: should be a text, found nothing (null)"),
        ("out=''", "the path is empty"),
        ("out=~nosuchuser/x", "there is no user ~nosuchuser"),
        ("out=" + "n" * 300, "300 bytes"),
        ('out="a\\0b"', "NUL"),
        ('out="\\ud800"', "surrogate"),
        ("engine.compile=1", "engine.compile: should be true or false, found 1"),
        ("optimizer.betas=x", "optimizer.betas: should be a list, found 'x'"),
        ("loss.summary={type: cosine, cosine: 1}", "loss.summary.cosine: there is no such key"),
        ("teachers=x", "teachers: should be a mapping of keys to values, found 'x'"),
        ("teachers.clip=null", "teachers: should have at least 1 item, found {}"),
        ("seed=" + str(2**70), "seed: should be less than"),
        ("seed=[" + ", ".join(["12345"] * 5000) + "]", "seed: should be an integer, found [12345, "),
    ],
)
def test_a_problem_is_one_short_sentence(minimal, word, what):
    (found,) = problems(minimal, word)
    assert what in found
    assert len(found) < 400


def test_an_integer_may_be_written_as_a_float(minimal):
    recipe = Recipe.load(minimal, "stages.0.steps=1e3", "optimizer.warmup_steps=10.0", "engine.threads=2.0")
    assert (recipe.num_steps, recipe.optimizer.warmup_steps, recipe.engine.threads) == (1000, 10, 2)
    assert type(recipe.num_steps) is int


def test_all_problems_at_once_each_with_its_key_and_the_nearest_name(minimal):
    found = problems(
        minimal,
        "teachers.clip.summary_wieght=2.0",
        "teachers.dino={type: dinov9, model: x/y}",
        "engine.kep=3",
        "optimizer.learning_rate=fast",
        "stages=[{steps: -1}]",
        "student.patch_size=8.5",
        "hedas=1",
    )
    by_key = {problem.split(":")[0]: problem for problem in found}
    assert set(by_key) == {
        "teachers.clip.summary_wieght",
        "teachers.dino",
        "engine.kep",
        "optimizer.learning_rate",
        "stages.0.steps",
        "student.patch_size",
        "hedas",
    }
    assert "there is no such key; did you mean 'summary_weight'" in by_key["teachers.clip.summary_wieght"]
    assert "'dinov2'" in by_key["teachers.dino"]
    assert "did you mean 'keep'?" in by_key["engine.kep"]
    assert "'fast'" in by_key["optimizer.learning_rate"]
    assert "found -1" in by_key["stages.0.steps"]
    assert "'heads'" in by_key["hedas"]


def test_who_gives_no_recipe_is_shown_to_one(minimal):
    assert "amradio recipes" in problems("seed=1")[0]
    assert "amradio recipes" not in problems(minimal, "out=null")[0]


def test_missing_keys_are_all_named():
    assert {problem.split(":")[0] for problem in problems("seed=1")} == {"data", "teachers", "student", "out"}


def test_a_type_that_is_missing_lists_what_there_is(minimal):
    (problem,) = problems(minimal, "teachers.x={model: a/b}")
    assert problem.startswith("teachers.x: 'type' is missing; there is: clip, ")
    assert "sam" in problem


def test_nearest_names_what_there_is_where_nothing_is_near():
    assert nearest("qqq", ["beta", "alpha"]) == "there is: alpha, beta"
    assert "and 10 more" in nearest("qqq", [f"key{n}" for n in range(40)])


@pytest.mark.parametrize(
    "word",
    [
        "seed=1.5",
        "seed=true",
        "seed='1'",
        "seed=null",
        "out=3",
        "engine.compile=1",
        "engine.compile='yes'",
        "data.flip='0.5'",
        "teachers=[]",
    ],
)
def test_types_are_strict(minimal, word):
    (problem,) = problems(minimal, word)
    assert problem.startswith(word.split("=")[0])


def test_what_the_keys_say_against_one_another(minimal):
    assert "no teacher 'clp'; did you mean 'clip'?" in problems(minimal, "stages=[{partitions: [{teachers: [clp]}]}]")[0]
    assert "no teacher 'clp'; did you mean 'clip'?" in problems(minimal, "heads.by_teacher.clp={summary: linear}")[0]
    assert (
        "every summary_weight and spatial_weight is 0"
        in problems(minimal, "teachers.clip.summary_weight=0.0", "teachers.clip.spatial_weight=0.0")[0]
    )
    assert "backbone" in problems(minimal, "teachers.backbone={type: clip, model: a/b}")[0]


@pytest.mark.parametrize(
    "name",
    [
        *("keys", "values", "items", "pop", "update", "clear", "training", "forward", "parameters", "train", "eval", "to", "half", "type"),
        *("state_dict", "register_buffer", "_modules", "__init__", "_x", "backbone", "a-b", "a b", "3d", "x" * 101, "ä" * 200),
    ],
)
def test_names_that_a_teacher_cannot_have(minimal, name):
    found = problems(minimal, f"teachers={{'{name}': {{type: clip, model: a/b}}}}")
    assert found[-1].startswith(f"teachers.{name[:60]}: ")
    assert found[-1].endswith("; give the teacher another name")
    head = {"summary": {"head": {"type": "linear"}, "dim": 3}}
    if name not in ("a-b", "a b", "3d"):
        with pytest.raises(UserError, match="heads"):
            validate(NetworkConfig, {"student": {"type": "vit", "size": "tiny"}, "num_summaries": 1, "heads": {name: head}})


def test_no_attribute_of_a_container_is_a_name(minimal):
    for name in dir(torch.nn.ModuleDict()):
        assert head_name_problem(name), name
    assert Recipe.load(minimal, "teachers.key={type: clip, model: a/b}", "teachers.Keys={type: clip, model: a/b}")
    torch.nn.ModuleDict({"key": torch.nn.Identity(), "Keys": torch.nn.Identity(), "siglip2-g": torch.nn.Identity()})
    assert head_name_problem("siglip2-g") is None


def test_a_head_that_cannot_read_a_summary_is_refused(minimal):
    (problem,) = problems(minimal, "heads.summary=attention")
    assert problem.startswith("heads")
    assert "summary" in problem
    assert "spatial features only" in problem
    assert Recipe.load(minimal, "heads.spatial=attention").heads.spatial.type == "attention"


def test_settings_are_frozen(minimal):
    recipe = Recipe.load(minimal)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        recipe.seed = 3
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        recipe.engine.keep = 3


def test_validate_says_where():
    with pytest.raises(UserError) as caught:
        validate(amradio.recipe.EvaluateSettings, {"evry": 3}, where="config.json: ")
    assert caught.value.problems == ("config.json: evry: there is no such key; did you mean 'every'?",)


# there and back


def test_a_recipe_written_out_reads_back_equal(minimal, tmp_path):
    words = (
        minimal,
        "data.val={type: mixture, sources: {a: scenes, b: {type: folder, path: /x}}, weights: {a: 2.0, b: 1.0}}",
        "loss.spatial=mse",
        "heads.by_teacher.clip={spatial: {type: attention, depth: 1}}",
        "stages=[{steps: 3, partitions: [{image_size: 32}, {image_size: 64, teachers: [clip], source: scenes}]}]",
        "engine.ema=0.99",
        "optimizer.betas=[0.8, 0.9]",
    )
    recipe = Recipe.load(*words)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(recipe))
    assert Recipe.load(str(file)) == recipe
    assert to_yaml(Recipe.load(str(file))) == to_yaml(recipe)


def test_changed_keys_name_each_leaf(minimal):
    old, new = (Recipe.load(minimal, *words).model_dump(mode="json") for words in ((), ("seed=4", "engine.keep=3", "loss.spatial=cosine")))
    found = changed_keys(old, new, ignore=("engine.keep",))
    assert "seed: was 0, is now 4" in found
    assert "loss.spatial.type: was 'mse', is now 'cosine'" in found
    assert not [line for line in found if line.startswith("engine")]
    assert changed_keys(old, old) == []


ALL = sorted(settings_below(Recipe, set()), key=lambda cls: f"{cls.__module__}.{cls.__name__}")


def test_the_walk_over_settings_finds_the_members_of_unions():
    assert {"ClipSettings", "SamSettings", "VitSettings", "MatchSettings", "FolderSettings", "MlpHeadSettings", "EngineSettings"} <= {
        cls.__name__ for cls in ALL
    }


@pytest.mark.parametrize(("name", "owners"), [("device", 3), ("precision", 3), ("num_workers", 3)])
def test_keys_that_several_commands_have_are_declared_once(name, owners):
    settings = (DataSettings, EmbedSettings, EngineSettings, Suite)
    fields = [cls.model_fields[name] for cls in settings if name in cls.model_fields]
    assert len(fields) == owners
    assert len({(field.description, str(field.annotation)) for field in fields}) == 1


SELF_EXPLAINING = {"type", "name"}


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_key_has_its_help(cls):
    """A docstring of its own; a key that only holds settings may leave it to their class."""
    assert cls.__doc__
    for name, field in cls.model_fields.items():
        holds_settings = any(settings.__name__ in str(field.annotation) for settings in ALL)
        assert field.description or name in SELF_EXPLAINING or holds_settings, f"{cls.__name__}.{name} has no docstring"


@pytest.mark.parametrize(
    "cls", [cls for cls in ALL if not any(f.is_required() for f in cls.model_fields.values())], ids=lambda c: c.__name__
)
def test_defaults_are_legal_and_read_back(cls):
    """pydantic takes defaults on trust."""
    assert validate(cls, parse_yaml(to_yaml(cls()), "defaults")) == cls()
