"""The ablations: every variant is a recipe, verdicts follow their rule, and the report is of what was measured."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from amradio.recipe import Recipe

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import ablations
from dots import ticks


def test_every_variant_is_a_recipe_and_every_claim_names_variants():
    seen = set()
    for _, group, variant, words in ablations.runs(200, [0], list(ablations.groups(200))):
        recipe = Recipe.load("quickstart", *ablations.BASE, "stages.0.steps=200", *words, "out=runs/x")
        assert recipe.num_steps == (600 if group == "modes" else 200)
        assert (group, variant) not in seen
        seen.add((group, variant))
    for group in ablations.groups(200).values():
        for claim in group.claims:
            assert {claim.better, claim.worse} <= {"recipe", *group.variants}
            assert claim.measure in ablations.MEASURES


@pytest.mark.parametrize(
    ("better", "worse", "spread", "expected"),
    [
        ([2.0, 3.0], [1.0, 1.0], 1.0, "reproduced"),
        ([1.0, 1.0], [2.0, 3.0], 1.0, "not reproduced"),
        ([1.0, 3.0], [1.0, 1.0], 1.0, "within the spread"),
        ([1.0, 0.0], [1.0, 1.0], 1.0, "within the spread"),
    ],
)
def test_a_gap_counts_only_beyond_the_spread(better, worse, spread, expected):
    assert ablations.verdict(better, worse, spread) == expected


def numbers(shift: float) -> dict:
    """Results as `amradio evaluate` writes them."""
    maps = {"spatial_standardized_cosine": 0.5 + shift, "summary_standardized_cosine": 0.6 + shift}
    return {
        "results": {
            "zero-shot": {"rows": {"student/clip": {"top1": 50 + shift}}},
            "k-NN": {"rows": {"student": {"k20": 40.0}}},
            "segmentation": {"rows": {"student": {"mean_iou": 30 + 10 * shift}}},
            "masks": {"rows": {}},
            "agreement": {"details": {"by_size": {"student/clip": {"32": maps, "64": maps, "128": maps}}}},
        }
    }


def test_what_was_measured_is_written_up(tmp_path, monkeypatch):
    for seed in (0, 1):
        for name, shift in (("recipe_recipe", 0.1 * seed), ("balance_adaloss", 0.5 + 0.1 * seed)):
            folder = tmp_path / "runs" / f"{name}_{seed}"
            folder.mkdir(parents=True)
            (folder / "measured.json").write_text(json.dumps(numbers(shift)))
    (tmp_path / "runs" / "steps.json").write_text("7")
    out = tmp_path / "found.json"
    words = ["--runs", str(tmp_path / "runs"), "--json", str(out), "--pictures", str(tmp_path), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *words, "--steps", "0"])
    ablations.main()
    written = json.loads(out.read_text())
    assert written["steps"] == 7
    assert list(written["groups"]) == ["balance"], "groups that were not run are left out"
    balance = written["groups"]["balance"]
    assert balance["rows"]["adaloss"][ablations.ZERO_SHOT] == [50.5, 50.6]
    verdicts = {(claim["better"], claim["worse"], claim["measure"]): claim for claim in balance["claims"]}
    better = verdicts["adaloss", "recipe", ablations.ZERO_SHOT]
    assert (better["gap"], better["spread"], better["verdict"]) == (pytest.approx(0.5), pytest.approx(0.0707, rel=1e-2), "reproduced")
    assert verdicts["recipe", "adaloss", ablations.MIOU]["verdict"] == "not reproduced"
    assert verdicts["recipe", "uncertainty", ablations.MIOU]["verdict"] == "not run"
    with Image.open(tmp_path / "ablation_balance.png") as picture:
        assert len(picture.convert("RGB").getcolors(100_000)) > 3
    monkeypatch.setattr(sys, "argv", ["ablations.py", *words, "--steps", "9"])
    with pytest.raises(SystemExit):
        ablations.main()


def test_maps_are_compared_at_every_size(tmp_path):
    results = [numbers(shift)["results"] for shift in (0.0, 0.1)]
    results[0].pop("masks")  # as of a student without SAM's head
    runs = [ablations.measures(found) for found in results]
    table = {"recipe": {"recipe": runs}, "modes": {ablations.TOGETHER: runs}}
    by_size = ablations.report(table, 7)["modes"]["by_size"]
    expected = {"student/clip": {size: pytest.approx([0.5, 0.6]) for size in ("32", "64", "128")}}
    assert by_size == {"recipe": expected, ablations.TOGETHER: expected}
    ablations.draw(ablations.report(table, 7), tmp_path)
    assert (tmp_path / "ablation_modes_by_size.png").is_file()


def test_ticks_are_round():
    assert ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.13, 0.21) == pytest.approx([0.14, 0.16, 0.18, 0.2])
