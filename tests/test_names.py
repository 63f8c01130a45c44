"""One rule of names for every reader: what is a picture, what is passed over and counted, and how names become keys."""

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from amradio.data import DataSettings, Feed, OpenData
from amradio.data.folder import FolderSettings
from amradio.data.full_images import open_images, whole_images
from amradio.data.names import PassedOver, from_key, to_key
from amradio.data.walk import walk
from amradio.data.webdataset import WebDatasetSettings
from amradio.errors import UserError
from amradio.evaluation.reading import Broken
from amradio.labelled.classification import ClassFolderSettings, ImageFolderSettings
from amradio.labelled.segmentation import Ade20kSettings, CityscapesSettings, ImagesLabelsSettings, PascalVocSettings
from data_folders import jpeg
from evaluations import read_all

RAW = os.fsdecode(b"caf\xe9.jpg")
TAKEN = (
    *(
        "a.jpg",
        "B.JPG",
        "0001.left.jpg",
        "0001.right.jpg",
        "d.jfif",
        "e.jpe",
        "f.JPEG",
        "g.tif",
        "h.tiff",
        "i.webp",
        "j.bmp",
        "k.gif",
        "l.png",
    ),
    *("slide1.tif/1.png", "slide1.tif/2.png", "deep/er/m.v2.jpg", "deep/a.jpg", "größe.jpg", "two\nlines.jpg", "back\\slash.jpg", RAW),
)
"""Pictures, whatever else their names look like."""
HIDDEN = ("._a.jpg", ".b.jpg", "deep/._a.jpg", "@eaDir/a.jpg", "__MACOSX/._a.jpg", "__MACOSX/x.jpg", ".git/x.png", "deep/@eaDir/SYNO.jpg")
OTHER = ("notes.txt", "Thumbs.db", "a.json", "noextension", "a.jpg.txt")
"""What nobody misses among pictures."""
MISSED = ("n.heic", "o.avif", "p.zip")
"""What is counted, as somebody may miss it."""


def fill(root: Path) -> Path:
    """Every kind of entry."""
    for name in (*TAKEN, *HIDDEN, *OTHER, *MISSED):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(1))
    os.mkfifo(root / "pipe.jpg")
    os.mknod(root / "socket.jpg", stat.S_IFSOCK | 0o644)
    (root / "nothing.jpg").symlink_to("gone.jpg")
    (root / "null.jpg").symlink_to("/dev/null")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "circle").symlink_to("circle2")
    (root / "circle2").symlink_to("circle")
    (root / "up").symlink_to("..")
    (root / "again").symlink_to("deep")
    (root / "empty.png").mkdir()
    return root


PASSED = {
    "a hidden file": 3,
    "a hidden folder": 4,
    "a pipe": 1,
    "a socket": 1,
    "a device": 1,
    "a link to nothing": 1,
    "a link in a circle": 3,
    "a link to a folder that is read already or contains it": 2,
    "a picture of a format that is not read: .heic": 1,
    "a picture of a format that is not read: .avif": 1,
    "an archive": 1,
}


def test_a_folder_is_walked_by_the_rule(tmp_path: Path) -> None:
    passed = PassedOver()
    assert sorted(walk(fill(tmp_path / "d"), passed)) == sorted(TAKEN)
    assert passed.counts == PASSED
    (note,) = passed.note(tmp_path)
    assert f"passed over {sum(PASSED.values())} entries" in note
    assert all(name in note for name in ("self.jpg", "circle", "again", "n.heic", "p.zip", "pipe.jpg", "@eaDir"))


def _of_class_folder(path: Path) -> Iterator[str]:
    found = ClassFolderSettings(path=str(path.parent)).build()
    assert set(found.labels) == {0}
    yield from (found.key(index).removeprefix("d/") for index in range(len(found)))


def _of_image_folder(path: Path) -> Iterator[str]:
    found = ImageFolderSettings(path=str(path)).build()
    yield from map(found.key, range(len(found)))


def _of_folder(path: Path) -> Iterator[str]:
    found = FolderSettings(path=str(path)).build()
    assert f"passed over {sum(PASSED.values())} entries" in found.notes()[0]
    yield from (found.key(found.nth(number)) for number in range(found.count()))


def _of_embed(path: Path) -> Iterator[str]:
    yield from (image.key for image in whole_images(open_images(path), range(4), None, 0) if image.image is not None)


READERS = {"folder": _of_folder, "class_folder": _of_class_folder, "image_folder": _of_image_folder, "embed": _of_embed}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_folders_takes_the_same(reader: str, tmp_path: Path) -> None:
    assert sorted(READERS[reader](fill(tmp_path / "d"))) == sorted(map(to_key, TAKEN))


@pytest.mark.parametrize("layout", ["images_labels", "ade20k", "cityscapes"])
def test_readers_of_labels_take_the_same(layout: str, tmp_path: Path) -> None:
    """Images by the rule; a label for each has its name and another extension."""
    images, labels = {
        "images_labels": ("images", "labels"),
        "ade20k": ("images/validation", "annotations/validation"),
        "cityscapes": ("leftImg8bit/val", "gtFine/val"),
    }[layout]
    suffix, label_suffix = ("_leftImg8bit", "_gtFine_labelIds") if layout == "cityscapes" else ("", "")
    names = [name for name in TAKEN if not name.endswith(("B.JPG", "slide1.tif/2.png"))]
    for name in (*names, *HIDDEN):
        base, ending = os.path.splitext(name)
        file, label = tmp_path / images / f"{base}{suffix}{ending}", tmp_path / labels / f"{base}{label_suffix}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(1))
        if name not in HIDDEN:
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (48, 36)).save(label)
    (tmp_path / images / "circle").symlink_to("circle")
    make = {"images_labels": ImagesLabelsSettings, "ade20k": Ade20kSettings, "cityscapes": CityscapesSettings}[layout]
    found = make(path=str(tmp_path), **({"classes": ["thing"]} if layout == "images_labels" else {})).build()
    assert sorted(pair.key for pair in found.pairs) == sorted(to_key(os.path.splitext(name)[0]) for name in names)
    assert found.read(0)[0].shape == (36, 48, 3)
    assert "1 x a link in a circle (circle)" in found.notes()[0]


def test_two_labels_or_images_of_one_name(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/a.jpeg", "labels/a.tif", "labels/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    found = ImagesLabelsSettings(path=str(tmp_path), classes=["x"]).build()
    assert [(pair.image.name, pair.label.name) for pair in found.pairs] == [("a.jpeg", "a.png")]
    assert "2 x a file whose name differs only in its extension (a.jpg, a.tif)" in found.notes()[0]


def test_a_list_of_voc_may_name_what_is_not_utf8(tmp_path: Path) -> None:
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / folder / f"{os.path.splitext(RAW)[0]}.{ending}")
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9\r\n\r\n")
    found = PascalVocSettings(path=str(tmp_path)).build()
    assert [pair.key for pair in found.pairs] == ["caf\\xe9"]


# --- tar shards


def tar_of(path: Path, *names: str, edit: Callable[[tarfile.TarInfo], None] = lambda member: None, **options: int) -> Path:
    with tarfile.open(path, "w", **options) as archive:  # type: ignore[call-overload]
        for name in names:
            member = tarfile.TarInfo(name)
            data = jpeg(1)
            member.size = len(data)
            edit(member)
            archive.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return path


def keys_of(path: Path) -> list[str]:
    source = open_images(path)
    return [source.key(source.nth(number)) for number in range(source.count())]


def test_members_of_shards_are_taken_by_the_rule(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "s.tar", *TAKEN, *(f"./{name}" for name in HIDDEN), *OTHER[:3], *MISSED, format=tarfile.GNU_FORMAT)
    expected = [f"s/{to_key(os.path.splitext(name)[0])}" for name in TAKEN]
    source = open_images(path)
    assert [source.key(source.nth(number)) for number in range(source.count())] == expected
    (note,) = source.notes()
    assert f"{len(HIDDEN)} x a hidden file" in note
    assert all(f"1 x {found}" in note for found in ("a picture of a format that is not read: .heic", "an archive within the archive"))
    assert "a picture without an extension that says so: .db (s/Thumbs.db)" in note


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda member: setattr(member, "type", tarfile.SYMTYPE), "a symbolic link"),
        (lambda member: setattr(member, "type", tarfile.FIFOTYPE), "a pipe or device"),
        (lambda member: setattr(member, "type", tarfile.LNKTYPE), "a hard link to nothing before it"),
    ],
)
def test_odd_members_of_shards_are_counted(edit: Callable[[tarfile.TarInfo], None], reason: str, tmp_path: Path) -> None:
    def odd(member: tarfile.TarInfo) -> None:
        if member.name == "odd.jpg":
            member.size = 0
            member.linkname = "gone.jpg"
            edit(member)

    source = open_images(tar_of(tmp_path / "s.tar", "a.jpg", "odd.jpg", "b.jpg", edit=odd))
    assert [source.key(source.nth(number)) for number in range(source.count())] == ["s/a", "s/b"]
    assert source.notes() == (f"{tmp_path}: passed over 1 entry: 1 x {reason} (s/odd.jpg)",)


def test_a_hard_link_is_the_picture_that_it_names(tmp_path: Path) -> None:
    def link(member: tarfile.TarInfo) -> None:
        if member.name == "b.jpg":
            member.type, member.size, member.linkname = tarfile.LNKTYPE, 0, "a.jpg"

    source = open_images(tar_of(tmp_path / "s.tar", "a.jpg", "b.jpg", edit=link))
    assert [source.key(source.nth(number)) for number in range(source.count())] == ["s/a", "s/b"]
    assert source.read(source.nth(0)) == source.read(source.nth(1)) == jpeg(1)


def test_archives_one_after_another_are_all_read(tmp_path: Path) -> None:
    parts = [tar_of(tmp_path / f"{number}", f"{number}.jpg", f"x{number}.jpg").read_bytes() for number in range(3)]
    (tmp_path / "s.tar").write_bytes(parts[0] + parts[1] + b"\0" * 512 * 77 + parts[2])
    assert keys_of(tmp_path / "s.tar") == ["s/0", "s/x0", "s/1", "s/x1", "s/2", "s/x2"]
    (tmp_path / "s.tar").write_bytes(parts[0] + parts[0])
    source = open_images(tmp_path / "s.tar")
    assert source.count() == 2
    assert "2 x a further image of a name that was read (s/0.jpg, ...)" in source.notes()[0]
    (tmp_path / "s.tar").write_bytes(parts[0] + b"this is no archive" * 100)
    source = open_images(tmp_path / "s.tar")
    assert source.count() == 2
    assert "data behind the end of the archive that is no tar" in source.notes()[0]
    (tmp_path / "s.tar").write_bytes(parts[0] + parts[1][:700])
    source = open_images(tmp_path / "s.tar")
    assert [source.key(source.nth(number)) for number in range(source.count())] == ["s/0", "s/x0", "s/1", "s.tar"]


def test_folders_of_shards_are_read_by_the_rule(tmp_path: Path) -> None:
    for name in ("a.tar", "B.TAR", "x.y.tar", "sub.tar/c.tar", "._a.tar", "@eaDir/a.tar", "d.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar_of(tmp_path / name, "1.jpg")
    (tmp_path / "circle.tar").symlink_to("circle.tar")
    for source in (WebDatasetSettings(path=str(tmp_path)).build(), open_images(tmp_path)):
        keys = {source.key(source.nth(number)) for number in range(source.count())}
        assert keys == {"a/1", "B/1", "x.y/1", "sub.tar/c/1"}
        assert "4 entries" in source.notes()[0]


@pytest.mark.parametrize(
    ("stated", "told"), [(2, "5 images found, 2 stated beside the shard: the others are not read"), (9, "5 images found, 9 stated")]
)
def test_statistics_that_promise_another_number_are_told(stated: int, told: str, tmp_path: Path) -> None:
    tar_of(tmp_path / "s.tar", *(f"{number}.jpg" for number in range(5)))
    (tmp_path / "s_stats.json").write_text(f'{{"successes": {stated}}}')
    settings = WebDatasetSettings(path=str(tmp_path / "s.tar"), shuffle_buffer=1)
    batches = OpenData(DataSettings(train=settings, num_workers=0)).train_batches(settings, Feed(8, 8))
    batch = next(batches)
    assert any(told in text for text in (*batch.remarks, *batch.skipped))
    assert len(keys_of(tmp_path / "s.tar")) == 5, "embed counts for itself"


@pytest.mark.parametrize(
    "stated", ['{"successes": 1000000000}', '{"successes": -1}', '{"successes": true}', "[]", "\xff", '{"successes": "5"}']
)
def test_statistics_that_cannot_be_are_not_believed(stated: str, tmp_path: Path) -> None:
    tar_of(tmp_path / "s.tar", *(f"{number}.jpg" for number in range(5)))
    (tmp_path / "s_stats.json").write_text(stated, encoding="latin-1")
    assert WebDatasetSettings(path=str(tmp_path / "s.tar")).build().count() == 5


# --- entries that are odd


def test_a_folder_that_cannot_be_read_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "lost+found/b.jpg", "gone/c.jpg", "z/d.jpg"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(jpeg(1))
    scandir = os.scandir

    def refusing(path: Path):
        if Path(path).name in ("lost+found", "gone"):
            raise PermissionError(13, "Permission denied") if Path(path).name == "lost+found" else FileNotFoundError(2, "No such file")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    source = FolderSettings(path=str(tmp_path / "d")).build()
    assert [source.key(number) for number in range(source.count())] == ["a.jpg", "z/d.jpg"]
    (note,) = source.notes()
    assert "1 x a folder that cannot be read (Permission denied) (lost+found)" in note
    assert "(No such file) (gone)" in note


def test_an_unreadable_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refusing)
    for build in (FolderSettings(path=str(tmp_path)).build, ClassFolderSettings(path=str(tmp_path)).build):
        with pytest.raises(UserError, match="Permission denied; make it readable"):
            build()


def test_an_empty_class_and_images_without_one_are_told(tmp_path: Path) -> None:
    for name in ("cat/a.jpg", "dog/deep/b.jpg", "beside.jpg", ".hidden/c.jpg", "@eaDir/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    (tmp_path / "empty").mkdir()
    found = ClassFolderSettings(path=str(tmp_path)).build()
    assert (list(found.class_ids), [found.key(0), found.key(1)]) == (["cat", "dog"], ["cat/a.jpg", "dog/deep/b.jpg"])
    assert "1 x an image beside the folders of classes (beside.jpg)" in found.notes()[0]
    assert "which is no class (empty)" in found.notes()[0]
    broken = Broken()
    assert len(read_all(found, broken)) == 2
    assert broken.note() == found.notes(), "evaluations tell it among their notes"


def test_what_was_passed_over_comes_with_the_first_batch(tmp_path: Path) -> None:
    settings = FolderSettings(path=str(fill(tmp_path / "d")))
    batches = OpenData(DataSettings(train=settings, num_workers=0)).train_batches(settings, Feed(8, 4))
    assert next(batches).remarks == settings.build().notes()
    assert next(batches).remarks == ()


# --- lists


def test_lists_take_lines_as_they_are(tmp_path: Path) -> None:
    names = ["a.jpg", " spaces .jpg", "form\x0cfeed.jpg", "line\u2028separator.jpg", "größe.jpg", RAW, "b"]
    for name in names:
        (tmp_path / name).write_bytes(jpeg(1))
    lines = [*names, "  a.jpg  ", "", "   ", "missing.jpg"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(map(os.fsencode, lines)))
    source = open_images(tmp_path / "list.txt")
    images = list(whole_images(source, [0], None, 0))
    assert [image.key for image in images] == [*map(to_key, names), "missing.jpg"]
    assert [image.key for image in images if image.image is None] == ["missing.jpg"]
    assert source.notes() == (f"{tmp_path / 'list.txt'}: passed over 1 entry: 1 x a line that stands there already (a.jpg)",)


def test_a_line_may_begin_at_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "~b.jpg").write_bytes(jpeg(2))
    (tmp_path / "list").write_text("~/a.jpg\n~b.jpg\n~nobody/c.jpg\n")
    source = open_images(tmp_path / "list")
    assert [source.read(number) for number in range(2)] == [jpeg(1), jpeg(2)]
    with pytest.raises(FileNotFoundError):
        source.read(2)


# --- keys


@pytest.mark.parametrize(
    "raw",
    [
        b"a.jpg",
        b"gr\xc3\xb6\xc3\x9fe",
        b"\xff",
        b"\\xff",
        b"a\\\xff\nb",
        b"\x1b[31m",
        "\u2028\u00a0\u0085".encode(),
        bytes(range(1, 256)) + b"x",
    ],
)
def test_keys_are_text_and_lose_nothing(raw: bytes) -> None:
    name = os.fsdecode(raw)
    key = to_key(name)
    key.encode()
    assert "\n" not in key
    assert "\x1b" not in key
    assert from_key(key) == name
    assert to_key("größe 1") == "größe 1"
