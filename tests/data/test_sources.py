"""One suite for every kind of source, and what is peculiar to each."""

import os
import tarfile

import numpy as np
import pytest

from amradio.config import to_yaml, validate
from amradio.data import SOURCES, DataSettings, Feed, OpenData, describe
from amradio.data.folder import FolderSettings
from amradio.data.guard import UnreadableError
from amradio.data.huggingface import HuggingFaceSettings
from amradio.data.mixture import MixtureSettings
from amradio.data.scene_source import ScenesSettings
from amradio.data.source import Order
from amradio.data.webdataset import WebDataset, WebDatasetSettings
from amradio.errors import UserError
from data_folders import BROKEN, jpeg, make, make_folder, make_mixture, make_shards, make_table, state_counts

KINDS = [source.model_fields["type"].default for source in SOURCES]
ORDER = Order(seed=3, batch_size=8)


@pytest.fixture(params=KINDS)
def settings(request, tmp_path):
    return make(request.param, tmp_path / "images")


def keys_of(settings, positions, order=ORDER):
    source = settings.build()
    return [source.key(source.drawn(order, position)) for position in positions]


def test_says_what_it_is(settings):
    assert any(character.isdigit() for character in describe(settings.build()))
    settings.build().check()


def test_settings_survive_yaml(settings):
    data = DataSettings(train=settings)
    assert validate(DataSettings, __import__("yaml").safe_load(to_yaml(data))) == data


def test_the_fixed_order_has_each_image_once(settings):
    source = settings.build()
    places = [source.nth(number) for number in range(source.count())]
    assert len({source.key(place) for place in places}) == len(places) == source.count() >= 24
    assert source.count(5) == 5
    assert source.count(10**9) == source.count()


def test_the_drawn_order_is_a_function_of_the_position(settings):
    forwards = keys_of(settings, range(100))
    assert keys_of(settings, range(60, 100)) == forwards[60:]
    assert keys_of(settings, reversed(range(100))) == forwards[::-1]
    assert keys_of(settings, range(100), Order(4, 8)) != forwards


def test_every_image_comes(settings):
    source = settings.build()
    everything = {source.key(source.nth(number)) for number in range(source.count())}
    assert set(keys_of(settings, range(30 * source.count()))) == everything


def test_a_stand_in_is_another_image(settings):
    source = settings.build()
    differing = sum(source.drawn(ORDER, position, 1) != source.drawn(ORDER, position) for position in range(100))
    assert differing > 80


def test_a_source_crosses_to_a_worker(settings):
    import pickle

    source = settings.build()
    source.key(source.drawn(ORDER, 5))
    copy = pickle.loads(pickle.dumps(source))
    for position in range(20):
        place = source.drawn(ORDER, position)
        assert copy.drawn(ORDER, position) == place
        assert np.array_equal(copy.read(place), source.read(place))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "scenes"])
def test_broken_images_are_replaced_and_named(kind, tmp_path):
    settings = make(kind, tmp_path, broken=(0, 4, 17))
    settings.build().check()
    data = DataSettings(train=settings, num_workers=0)
    batches = OpenData(data).train_batches(settings, Feed(16, 32, seed=5))
    skipped = [line for _, batch in zip(range(4), batches, strict=False) for line in batch.skipped]
    assert len(skipped) >= 4
    assert all(": damaged: " in line for line in skipped)
    found = list(OpenData(data.model_copy(update={"val": settings})).val_batches(Feed(16, 8)))
    skipped = [line for batch in found for line in batch.skipped]
    num_images = settings.build().count()
    assert sum(len(batch.keys) for batch in found) == num_images - len(skipped)
    assert len(skipped) == (6 if kind == "mixture" else 3)


@pytest.mark.parametrize("kind", ["folder", "webdataset", "huggingface"])
def test_a_source_of_broken_images_is_an_error(kind, tmp_path):
    settings = make(kind, tmp_path, broken=tuple(range(24)))
    with pytest.raises(UserError, match="not one can be read; the first"):
        settings.build().check()
    data = DataSettings(train=settings, num_workers=0)
    with pytest.raises(UserError, match="1000 unreadable images in a row"):
        next(OpenData(data).train_batches(settings, Feed(16, 2)))
    with pytest.raises(UserError, match="none of the 24 images that were tried can be read"):
        next(OpenData(data.model_copy(update={"val": settings})).val_batches(Feed(16, 5)))


# --- folder


def test_a_folder_is_read_however_deep_and_sorted(tmp_path):
    for name in ("b/z.JPG", "b/a.jpeg", "a.png", "c/d/e.webp", "notes.txt", "b/._a.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "folder.jpg").mkdir()
    source = FolderSettings(path=str(tmp_path)).build()
    assert [source.key(number) for number in range(source.count())] == ["a.png", "b/a.jpeg", "b/z.JPG", "c/d/e.webp"]
    assert source.describe() == f"4 images in {tmp_path}"


def test_a_name_that_is_not_unicode(tmp_path):
    (tmp_path / os.fsdecode(b"\xff\xe9.jpg")).write_bytes(jpeg(1))
    (tmp_path / "größe.jpg").write_bytes(jpeg(2))
    settings = FolderSettings(path=str(tmp_path))
    settings.build().check()
    assert settings.build().count() == 2


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: there is no such folder; give"):
        FolderSettings(path=str(tmp_path / "nowhere")).build().check()
    with pytest.raises(UserError, match="there is no image in this folder or below it"):
        FolderSettings(path=str(tmp_path)).build().check()
    (tmp_path / "file.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="this is a file"):
        FolderSettings(path=str(tmp_path / "file.jpg")).build().check()


def test_a_file_that_vanishes_is_skipped(tmp_path):
    settings = make_folder(tmp_path)
    batches = OpenData(DataSettings(train=settings, num_workers=0)).train_batches(settings, Feed(16, 24))
    (tmp_path / "class0" / "000.jpg").unlink()
    assert next(batches).skipped == ("class0/000.jpg: No such file or directory",)


# --- webdataset


def test_shards_are_found_by_braces_globs_and_folders(tmp_path):
    make_shards(tmp_path)
    every = [str(tmp_path / f"{number:05d}.tar") for number in range(4)]
    for path, expected in (
        ("{00000..00003}.tar", every),
        ("{00001..00002}.tar", every[1:3]),
        ("*.tar", every),
        ("", every),
        (f"00003.tar::{tmp_path}/00000.tar", [every[0], every[3]]),
    ):
        source = WebDatasetSettings(path=str(tmp_path / path)).build()
        assert source.shards == expected
    with pytest.raises(UserError, match=r"00004.tar: there is no such tar shard"):
        WebDatasetSettings(path=str(tmp_path / "{00000..00009}.tar")).build().check()
    with pytest.raises(UserError, match="local or mounted disk"):
        WebDatasetSettings(path="s3://bucket/{00000..00009}.tar").build().check()
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="unpack it"):
        WebDatasetSettings(path=str(tmp_path / "a.tar.gz")).build().check()


def test_broken_shards_are_named_and_their_good_part_is_read(tmp_path):
    settings = make_shards(tmp_path)
    whole = (tmp_path / "00002.tar").read_bytes()
    (tmp_path / "00002.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "00000.tar").write_bytes(BROKEN * 100)
    settings.build().check()
    batches = list(OpenData(DataSettings(train=settings, num_workers=0).model_copy(update={"val": settings})).val_batches(Feed(16, 64)))
    skipped = sorted(line for batch in batches for line in batch.skipped)
    assert [line.partition(": the shard is broken after")[:2] for line in skipped] == [
        ("00000.tar", ": the shard is broken after"),
        ("00002.tar", ": the shard is broken after"),
    ]
    assert sum(key.startswith("00002/") for batch in batches for key in batch.keys) in range(3, 9)


def test_shards_without_images(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    settings = WebDatasetSettings(path=str(tmp_path))
    with pytest.raises(UserError, match="there is no image in it"):
        settings.build().check()
    with pytest.raises(UserError, match="there is no image in them"):
        settings.build().drawn(ORDER, 0)


def test_stated_counts_spare_the_headers_and_change_nothing(tmp_path):
    settings = make_shards(tmp_path, lanes=1, shuffle_buffer=4)
    read = keys_of(settings, range(200))
    state_counts(tmp_path, (7, 5, 9, 3))
    source = settings.build()
    assert [source.key(source.drawn(ORDER, position)) for position in range(199, -1, -1)] == read[::-1]
    fresh = settings.build()
    assert isinstance(fresh, WebDataset)
    fresh.drawn(ORDER, 1000)
    assert not fresh._opened
    state_counts(tmp_path, (9, 5, 9, 3))
    batches = list(OpenData(DataSettings(train=settings, num_workers=0).model_copy(update={"val": settings})).val_batches(Feed(16, 64)))
    assert batches[0].skipped == ("00000.tar: 7 images found, 9 stated beside the shard",) * 2


def test_processes_open_shards_of_their_own(tmp_path):
    """With 16 lanes and batches of 8: two columns of eight lanes, one column for each of two processes."""
    settings = make_shards(tmp_path, (3,) * 32, lanes=16, shuffle_buffer=1)
    opened = []
    for rank in range(2):
        for worker in range(2):
            source = settings.build()
            for step in range(worker, 8, 2):
                for index in Feed(16, 8, rank=rank, world_size=2).share(8):
                    source.key(source.drawn(ORDER, 8 * step + index))
            assert isinstance(source, WebDataset)
            opened.append(set(source._opened))
    assert sum(map(len, opened)) == len(set.union(*opened)) >= 16


def test_an_epoch_of_a_lane_has_each_image_once(tmp_path):
    keys = keys_of(make_shards(tmp_path, lanes=1, shuffle_buffer=6), range(72))
    assert all(len(set(keys[start : start + 24])) == 24 for start in (0, 24, 48))
    assert keys[:24] != keys[24:48]


def test_shuffle_buffer_and_lanes_change_the_order(tmp_path):
    orders = [
        keys_of(make_shards(tmp_path, lanes=lanes, shuffle_buffer=buffer), range(48)) for lanes, buffer in ((1, 1), (1, 8), (2, 1), (2, 8))
    ]
    assert all(a != b for number, a in enumerate(orders) for b in orders[:number])
    first = orders[0][:24]
    assert [key for key in first if key.startswith("00002/")] == [f"00002/{number:09d}" for number in range(12, 21)]


# --- huggingface


def test_parquet_and_splits(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_table(tmp_path / "saved")
    table = datasets.load_from_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "some.parquet"))
    settings = HuggingFaceSettings(path=str(tmp_path / "some.parquet"), image="picture", split="val")
    settings.build().check()
    assert settings.build().key(3) == "val/000000003"
    datasets.DatasetDict(train=table, test=table.select(range(5))).save_to_disk(str(tmp_path / "dict"))
    assert HuggingFaceSettings(path=str(tmp_path / "dict"), image="picture", split="test").build().count() == 5
    with pytest.raises(UserError, match=r"no split 'tset'; did you mean 'test'"):
        HuggingFaceSettings(path=str(tmp_path / "dict"), image="picture", split="tset").build()


def test_what_can_be_wrong_with_a_table(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    make_table(tmp_path / "saved")
    with pytest.raises(UserError, match="no column 'image'; there is: picture"):
        HuggingFaceSettings(path=str(tmp_path / "saved")).build()
    with pytest.raises(UserError, match="there is no such folder"):
        HuggingFaceSettings(path=str(tmp_path / "nowhere")).build()
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'amradio\[data\]'"):
        HuggingFaceSettings(path="owner/name").build()


@pytest.mark.parametrize(
    ("name", "reason"), [(None, "holds no image here, but NoneType"), ("pipe.jpg", "a pipe, not a file"), ("gone.jpg", "No such file")]
)
def test_rows_that_name_no_picture(tmp_path, name, reason):
    datasets = pytest.importorskip("datasets")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = make_table(tmp_path / "saved", 1).build()
    row = {"bytes": None, "path": str(tmp_path / name)} if name else None
    features = datasets.Features({"picture": datasets.Image(decode=False)})
    source.table = datasets.Dataset.from_dict({"picture": [row]}, features=features)
    with pytest.raises((UnreadableError, FileNotFoundError), match=reason):
        source.read(0)


# --- mixture


@pytest.mark.slow
def test_a_mixture_keeps_its_proportions(tmp_path):
    settings = make_mixture(tmp_path)
    names = [key.partition("/")[0] for key in keys_of(settings, range(10_000))]
    assert (names.count("files"), names.count("shards"), names.count("drawn")) == (5000, 3000, 2000)
    some = names[2000:3000]
    assert some.count("files") == pytest.approx(500, abs=60)
    own = [key for key in keys_of(settings, range(10_000)) if key.startswith("files/")]
    counts = np.unique(own, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


def test_settings_of_a_mixture_are_checked(tmp_path):
    sources = {"a": {"type": "folder", "path": "/nowhere/a"}, "b": {"type": "folder", "path": "/nowhere/b"}}
    train = {"type": "mixture", "sources": sources, "weights": {"a": 0.95}}
    with pytest.raises(UserError, match=r"data\.train.*: weights: one for each source \(a, b\), found a"):
        validate(DataSettings, {"train": train}, "data.")
    train["weights"] = {"a": 1.0, "b": 0.0}
    with pytest.raises(UserError, match="leave out what is not wanted"):
        validate(DataSettings, {"train": train})
    train["weights"] = {"a": 1.0, "b": 2}
    with pytest.raises(UserError) as error:
        validate(DataSettings, {"train": train}).train.build().check()
    assert [problem.split(": there")[0] for problem in error.value.problems] == ["a: /nowhere/a", "b: /nowhere/b"]


def test_a_mixture_with_one_broken_source_is_an_error(tmp_path):
    broken = make_folder(tmp_path / "broken", 3, (0, 1, 2))
    settings = MixtureSettings(sources={"good": ScenesSettings(length=5), "bad": broken}, weights={"good": 1.0, "bad": 1.0})
    with pytest.raises(UserError, match=r"^bad: 3 images in .* not one can be read"):
        settings.build().check()


@pytest.mark.slow
def test_a_mixture_without_weights_is_by_size(tmp_path):
    sources = {"files": make_folder(tmp_path / "files", 30), "drawn": ScenesSettings(length=60), "few": ScenesSettings(length=10, seed=1)}
    mixed = MixtureSettings(sources=sources).build()
    assert mixed.weights == {"files": 30, "drawn": 60, "few": 10}
    names = [mixed.key(mixed.drawn(ORDER, position)).partition("/")[0] for position in range(10_000)]
    assert [names.count(name) for name in sources] == [3000, 6000, 1000]
    assert mixed.describe().startswith("0.3 of 30 images")
    recipe = validate(DataSettings, {"train": {"type": "mixture", "sources": {"a": {"type": "scenes"}}, "weights": None}})
    assert recipe.train.weights is None


def test_a_small_source_beside_a_huge_one_still_comes():
    sources = {"huge": ScenesSettings(length=10**9), "small": ScenesSettings(length=10, seed=1), "one": ScenesSettings(length=1, seed=2)}
    mixed = MixtureSettings(sources=sources).build()
    names = [mixed.drawn(ORDER, position)[0] for position in range(10_000)]
    assert [names.count(name) for name in sources] == [9998, 1, 1]


def test_sizes_that_are_unknown_are_refused_by_name(tmp_path):
    shards = {name: make_shards(tmp_path / name) for name in ("a", "b")}
    state_counts(tmp_path / "a", (7, 5, 9, 3))
    settings = MixtureSettings(sources={**shards, "drawn": ScenesSettings(length=24)})
    with pytest.raises(UserError, match=r"^b: how many images it has is unknown .* give weights") as error:
        settings.build()
    assert len(error.value.problems) == 1
    state_counts(tmp_path / "b", (7, 5, 9, 3))
    assert settings.build().weights == {"a": 24, "b": 24, "drawn": 24}


# --- scenes


def test_settings_of_scenes_change_the_pictures():
    def first(**changes):
        source = ScenesSettings(**{"length": 10, "seed": 0, "image_size": 32, **changes}).build()
        return source.count(), source.read(source.nth(0))

    assert first()[0] == 10
    assert first(length=11)[0] == 11
    assert not np.array_equal(first(seed=1)[1], first()[1])
    assert np.asarray(first(image_size=48)[1]).shape == (48, 48, 3)
