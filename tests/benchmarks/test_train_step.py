"""The benchmark of a step: what switches its parts on is taken by the recipe that it measures."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import train_step


@pytest.mark.parametrize("part", [*train_step.SWITCHED, "together"])
def test_every_part_is_switched_on_by_its_words(part: str, tmp_path: Path):
    options = Namespace(steps=4, recipe="quickstart", words=[])
    words = train_step.SWITCHED.get(part) or [word for name in train_step.TOGETHER for word in train_step.SWITCHED[name]]
    assert train_step.load(options, tmp_path, words) != train_step.load(options, tmp_path)
