"""Every number among the settings is finite and bounded, below and above, whichever room it belongs to."""

import math
from typing import Annotated, Any

import pydantic
import pytest

from amradio.config import Settings, validate
from amradio.distillation.losses import LossSettings
from amradio.downstream.detection.settings import DetectionRecipe
from amradio.downstream.vlm.settings import VlmRecipe
from amradio.embedding.settings import EmbedSettings
from amradio.errors import UserError
from amradio.evaluation.suite import Suite
from amradio.network import NetworkConfig
from amradio.recipe import Recipe
from amradio.words import read_words
from settings_tree import settings_below

ROOTS: tuple[type[Settings], ...] = (Recipe, Suite, EmbedSettings, NetworkConfig, DetectionRecipe, VlmRecipe)
ALL = sorted({cls for root in ROOTS for cls in settings_below(root, set())}, key=lambda cls: f"{cls.__module__}.{cls.__name__}")
NEGATIVE = {("students.timm_settings", "level")}
"""Where -1 is legal: the last level."""
MEASURED = {"agreement", "teacher"}
"""Results and notes in a model's config, which set nothing."""


def numbers_in(schema: Any) -> list[dict[str, Any]]:
    """The schemas of the numbers in a JSON schema."""
    if isinstance(schema, list):
        return [found for part in schema for found in numbers_in(part)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if schema.get("type") in ("integer", "number") else []
    return own + [found for key, part in schema.items() if key not in ("default", "enum", "const") for found in numbers_in(part)]


def numeric_fields() -> list[Any]:
    found = []
    for cls in ALL:
        for name, schema in cls.model_json_schema().get("properties", {}).items():
            if numbers_in(schema) and name not in MEASURED:
                module = cls.__module__.removeprefix("amradio.")
                found.append(pytest.param(cls, name, schema, id=f"{module}.{cls.__name__}.{name}"))
    return found


FIELDS = numeric_fields()


def test_the_walk_finds_numbers_of_every_room():
    names = {parameter.id.rpartition(".")[2] for parameter in FIELDS}
    assert {"learning_rate", "betas", "weights", "batch_size", "k", "depths", "layer_scale", "shuffle_buffer", "summary_weight"} <= names
    assert len(FIELDS) > 100


@pytest.mark.parametrize(("cls", "name", "schema"), FIELDS)
def test_a_number_has_bounds_on_both_sides(cls, name, schema):
    for number in numbers_in(schema):
        assert "minimum" in number or "exclusiveMinimum" in number, f"{cls.__name__}.{name} has no lower bound"
        assert "maximum" in number or "exclusiveMaximum" in number, f"{cls.__name__}.{name} has no upper bound"
        assert max(abs(number.get(key, 0)) for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")) <= 2**63


def takes(cls: type[Settings], name: str, value: Any) -> bool:
    """Whether a field takes a value, alone, as each item of a list, or as the value of a name."""
    field = cls.model_fields[name]
    whole = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    one = pydantic.TypeAdapter(whole, config=pydantic.ConfigDict(strict=True, allow_inf_nan=False))
    for shape in (value, [value], [value] * 2, [value] * 4, {"a": value}):
        try:
            one.validate_python(shape)
        except pydantic.ValidationError:
            continue
        return True
    return False


@pytest.mark.parametrize(("cls", "name", "schema"), FIELDS)
def test_no_field_takes_what_is_no_usable_number(cls, name, schema):
    for value in (math.nan, math.inf, -math.inf, 1e308, -1e308, 2**70, -(2**70), -1, -1.0):
        if (cls.__module__.removeprefix("amradio."), name) in NEGATIVE and value in (-1, -1.0):
            continue
        assert not takes(cls, name, value), f"{cls.__name__}.{name} takes {value}"


KEYS = (
    *("optimizer.learning_rate", "optimizer.epsilon", "optimizer.betas", "seed", "engine.threads", "stages.0.partitions.0.view_size"),
    *("loss.spatial.beta", "student.layer_scale", "data.flip", "teachers.clip.summary_weight", "normalize.batches"),
)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e308", "-1", str(2**70), "[.nan, .nan]", "{a: .nan}"])
@pytest.mark.parametrize("key", KEYS)
def test_a_recipe_names_the_key(key, value):
    base = ["data.train=scenes", "teachers.clip={type: embedded, name: clip}", "student={type: vit, size: tiny}", "out=x"]
    with pytest.raises(UserError) as caught:
        Recipe.load(*base, "stages=[{partitions: [{}]}]", f"{key}={value}")
    assert {problem.split(":")[0].removesuffix(".0").removesuffix(".1") for problem in caught.value.problems} <= {key, f"{key}.a"}


@pytest.mark.parametrize("word", ["optimizer.betas=[1.5, -3]", "optimizer.betas=[0.9, 1.0]", "optimizer.epsilon=0", "engine.ema=1"])
def test_values_that_break_the_optimizer_are_refused(word):
    with pytest.raises(UserError, match=word.split("=")[0]):
        Recipe.load("data.train=scenes", "teachers.clip={type: embedded, name: clip}", "student=vit", "out=x", word)


def test_a_mix_of_nothing_is_refused():
    with pytest.raises(UserError, match="both weights are 0"):
        validate(LossSettings, read_words(["spatial={type: match, cosine: 0, smooth_l1: 0}"]))
