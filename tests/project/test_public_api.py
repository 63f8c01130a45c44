"""What Python users call is documented argument by argument, one a line: shape, unit, range."""

import inspect
import re
from collections.abc import Callable, Iterator

import pytest

import amradio
from amradio.students import CustomStudent
from amradio.teachers.mask_decoder import MaskDecoder
from amradio.teachers.text_encoder import TextEncoder

CLASSES = (
    *(value for name in amradio.__all__ if inspect.isclass(value := getattr(amradio, name))),
    CustomStudent,
    MaskDecoder,
    TextEncoder,
)


def public() -> Iterator[tuple[str, Callable]]:
    for name in amradio.__all__:
        if inspect.isfunction(function := getattr(amradio, name)):
            yield name, function
    yield "CustomStudent.__init__", CustomStudent.__init__
    for cls in CLASSES:
        for base in cls.__mro__:
            if base.__module__.startswith("amradio.") and (base in CLASSES or base.__name__ == "DescribedNetwork"):
                yield from ((f"{cls.__name__}.{name}", value) for name, value in methods(base))


def methods(cls: type) -> Iterator[tuple[str, Callable]]:
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if inspect.isfunction(function) and not name.startswith("_"):
            yield name, inspect.unwrap(function)


PUBLIC = {name: function for name, function in public() if set(inspect.signature(function).parameters) - {"self", "cls"}}


def test_there_are_public_functions():
    assert {
        "load",
        "distill",
        "embed",
        "read_image",
        "Model.forward",
        "Model.features",
        "Model.nearest_size",
        "Recipe.load",
    } <= PUBLIC.keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_has_a_line(name):
    text = inspect.getdoc(PUBLIC[name]) or ""
    lines = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    documented = re.findall(r"^    (\w+): \S", lines, re.M)
    assert documented == [parameter for parameter in inspect.signature(PUBLIC[name]).parameters if parameter not in ("self", "cls")]
