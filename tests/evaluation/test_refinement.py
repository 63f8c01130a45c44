"""Refinement of maps in text space: against a slow computation, and on maps whose cells are noisy."""

import math

import pytest
import torch
import torch.nn.functional as F

from amradio.config import validate
from amradio.evaluation import measure
from amradio.evaluation.dense.open_vocabulary_segmentation import OpenVocabularySegmentationSettings
from amradio.evaluation.dense.refinement import Refinement, refined
from evaluations import SMALL, tiny_bench


@pytest.mark.parametrize("rounds", [1, 2])
def test_cells_equal_a_slow_computation(rounds: int):
    cells = F.normalize(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
    result = refined(cells, Refinement(temperature=0.3, sigma=1.5, rounds=rounds))
    places = [(y, x) for y in range(3) for x in range(4)]
    for image in range(2):
        current = {place: cells[image][place] for place in places}
        for _ in range(rounds):
            following = {}
            for y, x in places:
                weights = {
                    (v, u): math.exp(float(current[y, x] @ current[v, u]) / 0.3 + math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * 1.5**2)))
                    for v, u in places
                }
                total = sum(weight * current[place] for place, weight in weights.items())
                following[y, x] = total / total.norm()
            current = following
        for place in places:
            torch.testing.assert_close(result[image][place], current[place], rtol=1e-5, atol=1e-5)


def test_noisy_cells_are_told_apart_better():
    """Two halves of two directions, with so much noise that a tenth of the cells are wrong."""
    draws = torch.Generator().manual_seed(0)
    truth = (torch.arange(16) >= 8).long().expand(16, 16)
    words = torch.eye(8)[:2]
    cells = F.normalize(words[truth] + 0.6 * torch.randn(16, 16, 8, generator=draws), dim=-1)[None]
    before, after = (
        float(((each[0] @ words.T).argmax(-1) == truth).float().mean()) for each in (cells, refined(cells, Refinement(temperature=1.0)))
    )
    assert before < 0.9
    assert after > before + 0.03


@pytest.mark.slow
def test_it_is_off_by_default_and_an_option_of_the_evaluation(tmp_path):
    bench = tiny_bench(tmp_path)
    keys = {**SMALL["open_vocabulary_segmentation"], "models": ["teacher/clip"]}
    plain, on = (validate(OpenVocabularySegmentationSettings, {**keys, **more}) for more in ({}, {"refine": {"temperature": 1.0}}))
    assert plain.refine is None
    one, other = (measure(settings, settings.build(), bench) for settings in (plain, on))
    assert one.details["iou_by_class"] != other.details["iou_by_class"]
    assert one.fingerprint == other.fingerprint
