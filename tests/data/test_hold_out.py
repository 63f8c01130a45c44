"""Holding out a share of the training images."""

import pytest

from amradio import distill
from amradio.config import validate
from amradio.data import DataSettings, Feed, OpenData
from amradio.data.folder import Folder
from amradio.errors import UserError
from runs import metrics


def settings(**changes) -> DataSettings:
    return validate(DataSettings, {"train": {"type": "scenes", "length": 60}, "num_workers": 0, **changes})


def keys(batches, count: int) -> set[str]:
    return {key for _, batch in zip(range(count), batches, strict=False) for key in batch.keys}


@pytest.mark.slow
@pytest.mark.parametrize(("share", "held"), [(0.1, 6), (0.5, 30), (1 / 7, 8)])
def test_what_is_held_out_is_never_trained_on_and_all_the_rest_is(share, held):
    data = settings(hold_out=share)
    val = keys(OpenData(data).val_batches(Feed(16, 10)), 100)
    train = keys(OpenData(data).train_batches(data.train, Feed(16, 60 - held)), 1)
    assert len(val) == held
    assert len(train) == 60 - held
    assert not val & train


def test_a_partitions_other_source_is_whole():
    data = settings(hold_out=0.5)
    other = settings(train={"type": "scenes", "length": 10, "seed": 5}).train
    assert len(keys(OpenData(data).train_batches(other, Feed(16, 10)), 1)) == 10


def test_too_few_images_and_two_held_out_sources_are_refused():
    data = settings(train={"type": "scenes", "length": 5}, hold_out=0.1)
    with pytest.raises(UserError, match="not one image"):
        OpenData(data).val()
    with pytest.raises(UserError, match=r"set one of them to null: data\.hold_out=null"):
        settings(hold_out=0.1, val={"type": "scenes"})


def test_a_stream_cannot_be_cut():
    mixed = settings(
        train={
            "type": "mixture",
            "sources": {"a": {"type": "scenes"}, "b": {"type": "scenes", "seed": 1}},
            "weights": {"a": 1.0, "b": 1.0},
        },
        hold_out=0.1,
    )
    with pytest.raises(UserError, match="cannot be cut in two"):
        OpenData(mixed).val()


@pytest.mark.slow
def test_a_run_lists_each_folder_once(recipe, monkeypatch):
    """However often it evaluates on what is held out of it."""
    opened = []
    listed = Folder.__init__
    monkeypatch.setattr(Folder, "__init__", lambda self, *given, **named: opened.append(1) or listed(self, *given, **named))
    words = ("data.val=null", "data.hold_out=0.25", "stages.0.steps=6", "evaluate.every=2")
    folder = distill(recipe(*words))
    assert len([row for row in metrics(folder) if any(key.startswith("val/") for key in row)]) == 4
    assert len(opened) == 1


@pytest.mark.slow
def test_partitions_with_the_same_teacher_and_size_keep_their_rows(recipe):
    partition = "{image_size: 32, batch_size: 4}"
    folder = distill(recipe(f"stages=[{{steps: 1, partitions: [{partition}, {partition}, {partition}]}}]", "evaluate.every=1"))
    rows = {key.split("/")[1] + "/" + key.split("/")[2] for key in metrics(folder)[-1] if key.startswith("val/clip")}
    assert rows == {f"clip/{kind}{mark}" for kind in ("summary", "spatial") for mark in ("", "@32", "@32#2")}
