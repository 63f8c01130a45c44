"""A step's batch is a function of the recipe, the seed and the step, whoever loads it."""

import itertools
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amradio.batch import Batch
from amradio.config import validate
from amradio.data import SOURCES, DataSettings, Feed, OpenData, describe
from amradio.data import stateless_random as chance
from amradio.data.decode import centre_box, crop_and_resize
from amradio.data.folder import FolderSettings
from amradio.data.loading_processes import default_workers
from amradio.data.scene_source import ScenesSettings
from amradio.data.sizes import DrawnSizes
from amradio.errors import UserError
from data_folders import make, make_folder

KINDS = [source.model_fields["type"].default for source in SOURCES]
SHARED = Path(__file__).parents[3] / "shared" / "data"


def batches(settings, feed, count, start=0, **changes):
    data = DataSettings(train=settings, **{"num_workers": 0, **changes})
    found = OpenData(data).train_batches(settings, feed, start)
    taken = list(itertools.islice(found, count))
    found.close()
    return taken


def assert_equal(a: Batch, b: Batch):
    assert a.keys == b.keys
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.draws, b.draws)
    assert a.skipped == b.skipped


def joined(shares):
    keys, skipped = (tuple(itertools.chain.from_iterable(lists)) for lists in ([s.keys for s in shares], [s.skipped for s in shares]))
    return Batch(torch.cat([s.images for s in shares]), keys, torch.cat([s.draws for s in shares]), skipped)


@pytest.fixture(params=KINDS)
def settings(request, tmp_path):
    return make(request.param, tmp_path / "images", broken=(2, 9))


def test_what_a_batch_is(settings):
    first, second = batches(settings, Feed(32, 8, seed=1), 2)
    assert first.images.shape == (8, 3, 32, 32)
    assert first.images.dtype == torch.uint8
    assert first.images.is_contiguous()
    assert len(first.keys) == 8
    assert isinstance(first.keys, tuple)
    assert first.draws.shape == (8, 8)
    assert first.draws.dtype == torch.float32
    assert first.draws.min() >= 0
    assert first.draws.max() < 1
    assert not torch.equal(first.draws, second.draws)
    assert not torch.equal(first.images, second.images)


def test_resumed_equals_uninterrupted(settings):
    whole = batches(settings, Feed(16, 8, seed=1), 9)
    for resumed, expected in zip(batches(settings, Feed(16, 8, seed=1), 4, start=5), whole[5:], strict=True):
        assert_equal(resumed, expected)


def test_shares_of_several_processes_are_the_batch_of_one(settings):
    whole = batches(settings, Feed(16, 8, seed=1), 3)
    for world_size in (2, 4):
        shares = [batches(settings, Feed(16, 8, 1, rank, world_size), 3) for rank in range(world_size)]
        for step, expected in enumerate(whole):
            assert_equal(joined([share[step] for share in shares]), expected)


@pytest.mark.slow
def test_workers_change_nothing(settings):
    alone = batches(settings, Feed(16, 8, seed=1), 5, start=2)
    for number, expected in zip(batches(settings, Feed(16, 8, seed=1), 5, start=2, num_workers=2), alone, strict=True):
        assert_equal(number, expected)
    data = DataSettings(train=settings, num_workers=0)
    with_workers = data.model_copy(update={"num_workers": 2})
    for a, b in zip(
        OpenData(data.model_copy(update={"val": settings})).val_batches(Feed(16, 8)),
        OpenData(with_workers.model_copy(update={"val": settings})).val_batches(Feed(16, 8)),
        strict=True,
    ):
        assert_equal(a, b)


def test_seeds_change_everything(settings):
    (a,), (b,) = (batches(settings, Feed(16, 8, seed=seed), 1) for seed in (1, 2))
    assert a.keys != b.keys
    assert not torch.equal(a.draws, b.draws)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches(ScenesSettings(length=4), Feed(16, 2), 1)
    batches(ScenesSettings(length=4), Feed(16, 2), 1, num_workers=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_shows_each_image_once(settings):
    source = settings.build()
    data = DataSettings(train=settings, num_workers=0)
    expected = [source.key(source.nth(number)) for number in range(source.count())]
    found = list(OpenData(data.model_copy(update={"val": settings})).val_batches(Feed(16, 10)))
    skipped = {line.split(": ")[0] for batch in found for line in batch.skipped}
    assert [key for batch in found for key in batch.keys] == [key for key in expected if key not in skipped]
    assert all(len(batch.images) == len(batch.keys) == len(batch.draws) for batch in found)
    some = list(OpenData(data.model_copy(update={"val": settings})).val_batches(Feed(16, 10), limit=13))
    assert sum(len(batch.keys) + len(batch.skipped) for batch in some) == 13
    shares = [
        list(OpenData(data.model_copy(update={"val": settings})).val_batches(Feed(16, 10, 0, rank, 2), limit=13)) for rank in range(2)
    ]
    assert sorted(key for share in shares for batch in share for key in batch.keys) == sorted(key for batch in some for key in batch.keys)


def test_validation_cuts_the_central_square(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    data = DataSettings(train=FolderSettings(path=str(tmp_path)), num_workers=0)
    (batch,) = OpenData(data.model_copy(update={"val": data.train})).val_batches(Feed(20, 4))
    expected = np.asarray(picture.resize((50, 20), Image.Resampling.BICUBIC).crop((15, 0, 35, 20)))
    assert np.abs(batch.images[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_what_is_cut_out_has_the_aspect_of_the_size_of_the_step(tmp_path):
    """With crops of the largest area and the aspect alone, nothing is left to chance."""
    settings = make_folder(tmp_path)
    data = DataSettings(train=settings, num_workers=0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    sizes = DrawnSizes([(16, 16), (16, 40), (24, 16)], [1.0, 1.0, 1.0])
    feed = Feed((16, 24), 2, seed=1, sizes=sizes)
    numbers = [sizes.number(1, step) for step in range(6)]
    assert set(numbers) == {0, 1, 2}
    source = settings.build()
    by_key = {source.key(image): image for image in (source.nth(number) for number in range(source.count()))}
    for number, batch in zip(numbers, OpenData(data).train_batches(settings, feed), strict=False):
        height, width = sizes.sizes[number]
        for key, image in zip(batch.keys, batch.images, strict=True):
            expected = crop_and_resize(source.read(by_key[key]), partial(centre_box, aspect=width / height), (16, 24))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert centre_box(100, 40, 2.0) == (10, 0, 90, 40)
    assert centre_box(40, 100, 0.5) == (0, 10, 40, 90)
    (batch, *_) = OpenData(data.model_copy(update={"val": settings})).val_batches(Feed((16, 32), 4))
    assert np.array_equal(
        batch.images[0].permute(1, 2, 0).numpy(),
        crop_and_resize(source.read(by_key[batch.keys[0]]), partial(centre_box, aspect=2.0), (16, 32)),
    )


# --- settings


def test_each_setting_of_the_crop_changes_the_outcome(tmp_path):
    settings = make_folder(tmp_path)

    def seen(**changes):
        return batches(settings, Feed(16, 8), 1, **changes)[0].images

    usual = seen()
    for changes in ({"crop_scale": (0.1, 0.2)}, {"crop_ratio": (0.3, 0.4)}, {"flip": 0.0}, {"flip": 1.0}):
        assert not torch.equal(seen(**changes), usual)
    assert torch.equal(seen(flip=0.0), seen(flip=1.0).flip(-1))
    whole = seen(flip=0.0, crop_scale=(1.0, 1.0), crop_ratio=(4 / 3, 4 / 3))
    assert not torch.equal(whole, seen(flip=0.0))


def test_settings_out_of_range_are_refused():
    for key, value in (
        ("crop_scale", [0.5, 0.4]),
        ("crop_scale", [0.0, 1.0]),
        ("crop_ratio", [2.0, 1.0]),
        ("flip", 1.5),
        ("num_workers", -1),
    ):
        with pytest.raises(UserError, match=key):
            validate(DataSettings, {"train": "scenes", key: value})
    with pytest.raises(UserError, match="did you mean 'crop_scale'"):
        validate(DataSettings, {"train": "scenes", "crop_scales": [0.5, 1.0]})


def test_a_batch_that_cannot_be_shared_out():
    with pytest.raises(UserError, match="batch_size 10 cannot be shared out to 4 processes"):
        Feed(16, 10, rank=0, world_size=4)
    with pytest.raises(UserError, match="rank is below world_size"):
        Feed(16, 8, rank=4, world_size=4)


def test_default_workers_leave_a_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 7
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert default_workers() == 1
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    assert default_workers() == 0, "Windows"


# --- chance


def test_uniform_numbers_are_uniform_and_belong_to_their_place():
    numbers = chance.uniform(7, 1, 3, 0, 4000, 24)
    assert np.array_equal(chance.uniform(7, 1, 3, 1000, 10, 24), numbers[1000:1010])
    np.testing.assert_allclose(numbers.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(numbers.var(0), 1 / 12, atol=0.01)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(24)).max() < 0.08
    for other in (chance.uniform(8, 1, 3, 0, 4000, 24), chance.uniform(7, 0, 3, 0, 4000, 24), chance.uniform(7, 1, 4, 0, 4000, 24)):
        assert abs(np.corrcoef(other.ravel(), numbers.ravel())[0, 1]) < 0.02


def test_these_numbers_never_change():
    """A run that was begun with an older release resumes with this one."""
    np.testing.assert_allclose(chance.uniform(1, 0, 2, 3, 1, 8)[0, :3], [0.69413614, 0.34500343, 0.28394109], atol=1e-7)
    assert [chance.permuted(number, 10, chance.key_of(1, 2)) for number in range(10)] == [8, 9, 7, 2, 5, 0, 4, 3, 1, 6]


def test_permutations():
    for count in (1, 2, 3, 10, 64, 1000):
        assert sorted(chance.permuted(number, count, 5) for number in range(count)) == list(range(count))
    where = np.array([[chance.permuted(number, 12, chance.key_of(1, epoch)) for number in range(12)] for epoch in range(1200)])
    for number in range(12):
        assert np.bincount(where[:, number], minlength=12) == pytest.approx(np.full(12, 100), abs=45)
    assert 0 <= chance.permuted(10**11, 10**12, 3) < 10**12


# --- processes


@pytest.mark.slow
def test_leaving_early_ends_the_workers(tmp_path):
    settings = make_folder(tmp_path)
    began = time.monotonic()
    for _ in range(3):
        batches(settings, Feed(16, 4), 1, num_workers=2)
    assert time.monotonic() - began < 30


SCRIPT = """
import os, signal
from amradio.data import DataSettings, Feed, OpenData
from amradio.data.decode import centre_box, crop_and_resize
from amradio.data.folder import FolderSettings
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append("int"))
signal.signal(signal.SIGTERM, lambda *_: seen.append("term"))
data = DataSettings(train=FolderSettings(path={path!r}), num_workers=2)
batches = OpenData(data).train_batches(data.train, Feed(16, 4))
next(batches)
os.killpg(0, signal.SIGINT)
os.killpg(0, signal.SIGTERM)
for _ in range(20):
    next(batches)
print(*seen, flush=True)
if {killed}:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_workers_stand_signals_and_end_with_the_process(tmp_path, killed):
    """They do not run the script anew (it has no guard), outlive Ctrl-C and SIGTERM to the group, and leave no word and no orphan."""
    make_folder(tmp_path / "images")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=str(tmp_path / "images"), killed=killed))
    began = subprocess.Popen(
        [sys.executable, "-W", "error", str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    # communicate() ends when the last process that holds the pipes does, workers and their server included.
    found = began.communicate(timeout=60)
    assert (began.returncode, *found) == (-signal.SIGKILL if killed else 0, "int term\n", "")


# --- real images


@pytest.mark.parametrize(("folder", "count"), [("caltech101/train", 3490), ("flickr8k/images", 1000)])
def test_real_images(folder, count):
    if not (SHARED / folder).is_dir():
        pytest.skip(f"needs the real images of ../shared/data/{folder}")
    settings = FolderSettings(path=str(SHARED / folder))
    settings.build().check()
    assert describe(settings.build()).startswith(f"{count:,} images in ")
    (batch,) = batches(settings, Feed(64, 64, seed=1), 1)
    assert batch.skipped == ()
    assert len(set(batch.keys)) == 64
    assert 30 < batch.images.float().std(dim=(1, 2, 3)).mean() < 90
