"""Floors: what trivial answers score, and how tables, warnings and results mark what is not better."""

import io
import itertools
import sys

import pytest
import torch

from amradio.commands.results import print_results
from amradio.evaluation import Metric, Result
from amradio.evaluation.base import below_floor, floor_warning
from amradio.evaluation.classification.retrieval import chance
from amradio.evaluation.stored import counted
from amradio.evaluation.suite import plain
from amradio.labelled.classification import share_of_most_frequent
from evaluations import SMALL, tiny_bench


def result(**more: object) -> Result:
    rows = {
        "student": {"k20": 20.5, "ms": 3.0, "note": 1.0},
        "student/clip": {"k20": 27.8, "ms": 5.0, "note": 1.0},
        "teacher/clip": {"k20": 15.2, "ms": 4.0},
        "teacher/dino": {"k20": 31.0},
    }
    metrics = [Metric("k20", "k=20"), Metric("ms", "ms", "", "lower"), Metric("note", "note", "", None)]
    floors = {"k20": 27.8, "ms": 4.5, "note": 9.0}
    return Result(metrics, rows, {"images": 3}, **{"floors": floors, "floor": "raw pixels", **more})


def test_a_value_that_is_not_better_is_marked_in_its_column(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_results({"k-NN": result()})
    printed = capsys.readouterr().out
    cells = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if "/" in line or line.lstrip().startswith("student")}
    assert cells["student"][:2] == ["!20.5", "*3"]
    assert cells["student/clip"][:2] == ["!27.8", "!5"], "as good is not better"
    assert cells["teacher/clip"][:2] == ["!15.2", "4"]
    assert cells["teacher/dino"][:2] == ["*31.0", "-"]
    assert "! not better than the floor" in printed
    (warning,) = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert warning == (
        "warning: k-NN: not better than raw pixels, so these models have not learnt such images: "
        "k=20: student, student/clip, teacher/clip; ms: student/clip"
    )
    assert plain(result())["below_floor"] == {"k20": ["student", "student/clip", "teacher/clip"], "ms": ["student/clip"]}


def test_nothing_is_marked_where_all_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    print_results({"k-NN": result(floors={"k20": 1.0})})
    printed = capsys.readouterr().out
    assert "!" not in printed
    assert "warning" not in printed
    assert plain(result(floors={}))["below_floor"] == {}


def test_a_floor_of_each_model() -> None:
    found = result(floors={}, row_floors={"student": {"k20": 20.0}, "teacher/dino": {"k20": 40.0}})
    assert below_floor(found, found.metrics[0]) == ["teacher/dino"]
    assert floor_warning(found).endswith("k=20: teacher/dino")
    assert floor_warning(found, "student") == ""
    everything = result(floors={"k20": 99.0})
    assert floor_warning(everything).endswith("such images: k=20: all rows")
    assert floor_warning(everything, "teacher/clip").endswith("k=20: teacher/clip")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_console_shows_the_marks(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    print_results({"k-NN": result()})
    sys.stdout.flush()
    assert "!20.5" in written.getvalue().decode(encoding)


def test_chance_equals_all_orders() -> None:
    """Recall at k over every order of four texts, of which some images own two."""
    right = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)

    def recall(table: torch.Tensor, k: int) -> float:
        hits = [any(row[place] for place in order[:k]) for row in table for order in itertools.permutations(range(table.shape[1]))]
        return 100 * sum(hits) / len(hits)

    for k in (1, 2, 3, 9):
        found = chance(right, k)
        assert found["image_text"] == pytest.approx(recall(right, k))
        assert found["text_image"] == pytest.approx(recall(right.T, k))


def test_the_most_frequent_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert [share_of_most_frequent(labels, count) for count in (1, 2, 9)] == pytest.approx([50, 100 * 5 / 6, 100])


@pytest.mark.slow
def test_every_floor_has_words(tmp_path) -> None:
    from amradio.evaluation import EVALUATIONS, measure

    bench = tiny_bench(tmp_path)
    for settings in (found for found in EVALUATIONS if found.model_fields["type"].default in SMALL):
        kind = settings.model_fields["type"].default
        chosen = settings.model_validate({"type": kind, **SMALL[kind]})
        found = measure(chosen, chosen.build(), bench)
        assert bool(found.floors or found.row_floors) == bool(found.floor), kind
        assert found.inputs.keys() == found.rows.keys(), kind
        headline = {metric.name for metric in found.metrics if metric.headline}
        if kind in ("knn", "zero_shot", "retrieval", "linear_classification"):
            assert found.floors.keys() == headline, "every column has a floor"


def test_counts_are_words_and_one_is_no_plural():
    assert counted({"images": 1024, "sizes": 1, "calls_at_least": 5, "broken": 0}) == "1,024 images, 1 size, 5 calls at least"
    assert counted({"classes": 1, "queries": 1, "database": 1, "broken": 2}) == "1 class, 1 query, 1 database, 2 broken"
