"""`amradio embed`: equal to the model on each image alone, the same from folder, list and shards, and however often it is stopped."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import amradio
from amradio.__main__ import main
from amradio.config import validate
from amradio.data.full_images import CHUNK, open_images, whole_images
from amradio.data.names import from_key
from amradio.embedding import EmbedSettings, embed_images, embeddings
from amradio.embedding import job as jobs
from amradio.embedding.parts import Parts
from amradio.errors import UserError
from amradio.formats.model_folder import write_folder
from amradio.image_input import resize
from amradio.model import Model
from data_folders import BROKEN, jpeg, make_folder, make_shards, make_table
from evaluations import tiny_model, tiny_teachers

SIZES = ((40, 40), (48, 32), (64, 40), (33, 70))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """32 px, patch 8; heads clip and sam (which has no summary)."""
    return tiny_model(tiny_teachers(tmp_path_factory.mktemp("teachers")), **{"teachers.sam.summary_weight": "0"})


@pytest.fixture(scope="module")
def model_folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_folder(path, model.config, model.network, {"step": 1, "num_steps": 1, "data": "none", "agreement": {}})
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 PNGs of four sizes in two folders, two of them broken."""
    path = tmp_path_factory.mktemp("photos")
    for number in range(22):
        file = path / f"set{number % 2}" / f"{number:02d}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZES[number % 4][::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    for name in ("set0/04.png", "set1/21.png"):
        (path / name).write_bytes(BROKEN)
    return path


def keys_in(file: Path) -> list[str]:
    """As the README says."""
    with safe_open(file, "pt") as content:
        return json.loads(content.get_tensor("keys").numpy().tobytes())


def alone(model: Model, file: Path, short_side: int | None) -> dict[str, amradio.Features]:
    """The model on one image that Pillow reads."""
    pixels = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)[None].float() / 255
    height, width = pixels.shape[-2:]
    scale = short_side / min(height, width) if short_side else 1
    legal = model.nearest_size(round(height * scale), round(width * scale))
    return model(resize(pixels, legal), heads=model.heads)


@pytest.mark.slow
@pytest.mark.parametrize(("image_size", "short_side"), [("trained", 32), (48, 48), ("own", None)])
def test_rows_are_what_the_model_says_of_each_image(model, model_folder, photos, tmp_path, image_size, short_side):
    done = amradio.embed(
        model_folder, photos, tmp_path / "x.safetensors", heads=["clip", "sam"], spatial="full", dtype="float32", image_size=image_size,
        batch_size=3, num_workers=0,
    )  # fmt: skip
    assert (done.num_images, set(done.broken)) == (20, {"set0/04.png", "set1/21.png"})
    found, keys = load_file(tmp_path / "x.safetensors"), keys_in(tmp_path / "x.safetensors")
    assert keys == sorted(keys)
    assert len(keys) == 20
    assert set(found) == {
        "keys", "summary", "spatial", "spatial.grid", "clip.summary", "clip.spatial", "clip.spatial.grid", "sam.spatial", "sam.spatial.grid"
    }  # fmt: skip
    ends = found["spatial.grid"].prod(1).cumsum(0).tolist()
    for row, key in enumerate(keys):
        wanted = alone(model, photos / key, short_side)
        cells = slice(ends[row - 1] if row else 0, ends[row])
        for name, features in wanted.items():
            prefix = "" if name == "backbone" else f"{name}."
            if features.summary is not None:
                assert torch.allclose(found[f"{prefix}summary"][row], features.summary[0], atol=1e-5)
            grid = found[f"{prefix}spatial.grid"][row].tolist()
            assert torch.allclose(found[f"{prefix}spatial"][cells].view(*grid, -1), features.spatial[0], atol=1e-5)


@pytest.mark.slow
def test_pooled_maps_and_half_precision(model, model_folder, photos, tmp_path):
    amradio.embed(model_folder, photos, tmp_path / "x.safetensors", heads=["sam"], spatial="pooled", num_workers=0)
    found, keys = load_file(tmp_path / "x.safetensors"), keys_in(tmp_path / "x.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "keys": torch.uint8, "summary": torch.float16, "spatial": torch.float16, "sam.spatial": torch.float16
    }  # fmt: skip
    wanted = alone(model, photos / keys[5], 32)
    assert torch.allclose(found["sam.spatial"][5].float(), wanted["sam"].spatial.mean((0, 1, 2)), atol=2e-3)
    assert torch.allclose(found["summary"][5].float(), wanted["backbone"].summary[0], atol=5e-3)


def test_batches_of_the_iterator(model, photos):
    found = list(embeddings(model, photos, heads=["clip"], batch_size=4))
    assert sorted(key for batch in found for key in batch.keys) == sorted(
        str(path.relative_to(photos)) for path in photos.rglob("*.png") if path.name not in ("04.png", "21.png")
    )
    assert {key for batch in found for key in batch.broken} == {"set0/04.png", "set1/21.png"}
    assert max(len(batch.keys) for batch in found) == 4
    for batch in found:
        assert batch.features["clip"].summary.shape[0] == batch.features["backbone"].spatial.shape[0] == len(batch.keys) > 0
        for row, key in enumerate(batch.keys):
            assert torch.allclose(batch.features["clip"].summary[row], alone(model, photos / key, 32)["clip"].summary[0], atol=1e-5)


def test_memory_stays_bounded_where_every_image_has_a_size_of_its_own(model, tmp_path):
    for number in range(40):
        Image.new("RGB", (32 + 8 * number, 32)).save(tmp_path / f"{number:02d}.png")
    batches = list(embeddings(model, tmp_path, image_size="own", batch_size=2))
    assert sum(len(batch.keys) for batch in batches) == 40
    assert batches[0].numbers == (0,), "eight wait at most"


def test_parquet_has_the_same_rows(model_folder, photos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with amradio[data]")
    for name in ("x.safetensors", "x.parquet"):
        amradio.embed(model_folder, photos, tmp_path / name, heads=["clip"], spatial="full", num_workers=0)
    found, table = load_file(tmp_path / "x.safetensors"), parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["key"] == keys_in(tmp_path / "x.safetensors")
    assert np.array_equal(np.array(table["clip.summary"], np.float16), found["clip.summary"].numpy())
    assert table["spatial.grid"] == found["spatial.grid"].tolist()
    cells = [cell for image in table["spatial"] for cell in image]
    assert np.array_equal(np.array(cells, np.float16), found["spatial"].numpy())


@pytest.mark.slow
def test_folder_list_shards_and_table_say_the_same(model_folder, tmp_path):
    count = 24
    make_folder(tmp_path / "folder", count, broken=(3,))
    names = [f"folder/class{number % 3}/{number:03d}.jpg" for number in range(count)]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n\n")
    make_shards(tmp_path / "shards", (7, 5, 9, 3), broken=(3,))
    sources = {
        "folder": tmp_path / "folder",
        "list": tmp_path / "list.txt",
        "shards": tmp_path / "shards",
        "pattern": f"{tmp_path}/shards/{{00000..00003}}.tar",
        "table": make_table(tmp_path / "table", count, broken=(3,)),
    }
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, images in sources.items():
        out = tmp_path / f"{name}.safetensors"
        assert list(amradio.embed(model_folder, images, out, num_workers=0, dtype="float32").broken.values()) != []
        numbers = [int("".join(filter(str.isdigit, key.split("/")[-1]))) for key in keys_in(out)]
        found[name] = dict(zip(map(str, numbers), load_file(out)["summary"], strict=True))
    for name, rows in found.items():
        assert rows.keys() == found["folder"].keys(), name
        assert all(torch.allclose(row, found["folder"][number], atol=1e-6) for number, row in rows.items()), name
    assert keys_in(tmp_path / "list.safetensors") == [name for name in names if "003" not in name]
    assert keys_in(tmp_path / "shards.safetensors")[:2] == ["00000/000000000", "00000/000000001"]


@pytest.fixture
def in_parts_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PART", CHUNK)


class StopError(Exception):
    """What a test stops a job with."""


def stop_after(count: int):
    def progress(items, title, total):
        for number, item in enumerate(items):
            if number == count:
                raise StopError
            yield item

    return progress


@pytest.mark.slow
@pytest.mark.usefixtures("in_parts_of_eight")
@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_a_stopped_job_goes_on_and_gives_the_same_bytes(model, photos, tmp_path, suffix):
    settings, source = EmbedSettings(heads=("clip",), spatial="pooled", batch_size=3, num_workers=0), open_images(photos)
    whole = embed_images(model, source, tmp_path / f"whole{suffix}", settings)
    assert whole.num_resumed == 0
    out = tmp_path / f"stopped{suffix}"
    for count in (10, 9):
        with pytest.raises(StopError):
            embed_images(model, source, out, settings, stop_after(count))
    assert not out.exists()
    shared = embed_images(model, source, out, settings.model_copy(update={"num_workers": 1}))
    assert (shared.num_images, shared.num_resumed, shared.broken) == (20, 16, whole.broken)
    assert out.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}{suffix}{more}" for name in ("whole", "stopped") for more in ("", ".broken.txt")
    )
    assert (tmp_path / f"whole{suffix}.broken.txt").read_text().splitlines()[0].startswith("set0/04.png\t")


@pytest.mark.usefixtures("in_parts_of_eight")
def test_a_damaged_part_is_made_again(model, photos, tmp_path):
    settings, source, out = EmbedSettings(num_workers=0), open_images(photos), tmp_path / "x.safetensors"
    embed_images(model, source, tmp_path / "whole.safetensors", settings)
    with pytest.raises(StopError):
        embed_images(model, source, out, settings, stop_after(17))
    for number, size in ((0, 100), (1, 0)):
        part = Parts(tmp_path / "x.safetensors.parts").path(number)
        part.write_bytes(part.read_bytes()[:size])
    assert embed_images(model, source, out, settings).num_resumed == 0
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.usefixtures("in_parts_of_eight")
def test_parts_of_another_job_are_refused(model, photos, tmp_path):
    settings, source, out = EmbedSettings(num_workers=0), open_images(photos), tmp_path / "x.safetensors"
    with pytest.raises(StopError):
        embed_images(model, source, out, settings, stop_after(9))
    with pytest.raises(UserError, match=r"\.parts: .* another job; .*or delete the folder:\n    spatial: was 'none', is now 'pooled'$"):
        embed_images(model, source, out, settings.model_copy(update={"spatial": "pooled"}))
    for number in range(22):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / f"{number}.jpg").write_bytes(jpeg(number))
    with pytest.raises(UserError, match=r"the images have changed since the job started \(16 in part 0"):
        embed_images(model, open_images(tmp_path / "other"), out, settings)


@pytest.mark.usefixtures("in_parts_of_eight")
def test_a_kill_between_the_last_two_acts(model, photos, tmp_path, monkeypatch):
    settings, source, out = EmbedSettings(num_workers=0), open_images(photos), tmp_path / "x.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "remove", lambda self: (_ for _ in ()).throw(StopError))
        with pytest.raises(StopError):
            embed_images(model, source, out, settings)
    written = out.read_bytes()
    again = embed_images(model, source, out, settings)
    assert (again.num_images, again.num_resumed, set(again.broken)) == (20, 22, {"set0/04.png", "set1/21.png"})
    assert out.read_bytes() == written
    assert not (tmp_path / "x.safetensors.parts").exists()


@pytest.mark.slow
def test_killed_from_outside_and_started_again(model_folder, tmp_path, capsys):
    """SIGKILL while the second of three parts is being made."""
    for number in range(1200):
        (tmp_path / "many" / f"{number // 100}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "many" / f"{number // 100}" / f"{number}.jpg").write_bytes(jpeg(number % 7))
    words = ["embed", str(model_folder), str(tmp_path / "many"), "--num-workers", "0", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "amradio", *words, str(tmp_path / "x.safetensors")], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    first = tmp_path / "x.safetensors.parts" / "part_000000.safetensors"
    until = time.monotonic() + 60
    while not first.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert main([*words, str(tmp_path / "x.safetensors")]) == 0
    assert main([*words, str(tmp_path / "whole.safetensors")]) == 0
    assert " of them were there from an earlier call" in capsys.readouterr().out
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_the_command(model_folder, photos, tmp_path, capsys):
    words = ["embed", str(model_folder), str(photos), "--out", str(tmp_path / "x.safetensors"), "--num-workers", "0"]
    assert main([*words, "--heads", "clip", "--image-size", "40", "--dtype", "float32", "--batch-size", "5"]) == 0
    printed = capsys.readouterr().out
    assert "20 of 22 images in" in printed
    assert "2 could not be read and were left out" in printed
    assert "set0/04.png: not a picture" in printed or "set0/04.png: " in printed
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        said = file.metadata()
    assert (said["image_size"], said["dtype"], said["heads"], said["broken"]) == ("40", "float32", '["clip"]', "2")
    assert main([*words]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert main(["embed", str(model_folder), str(photos), "--out", str(tmp_path / "y.safetensors"), "--image-size", "big"]) == 2
    assert "image_size" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["clap"]}, "there is no head 'clap'; did you mean 'clip'"),
        ({"heads": ["sam"]}, "'sam' has no summary, and maps are left out; ask for spatial pooled or full"),
        ({"spatial": "mean"}, "spatial: should be 'none', 'pooled' or 'full'"),
        ({"batchsize": 3}, "batchsize: there is no such key; did you mean 'batch_size'"),
        ({"image_size": 0}, "image_size"),
        ({"device": "warp"}, "'warp' is not a device"),
    ],
)
def test_bad_options(model_folder, photos, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        amradio.embed(model_folder, photos, tmp_path / "x.safetensors", **options)
    assert list(tmp_path.iterdir()) == []


def test_bad_output(model_folder, photos, tmp_path):
    with pytest.raises(UserError, match=r"the ending gives the format; available: \.safetensors, \.parquet"):
        amradio.embed(model_folder, photos, tmp_path / "x.npz")
    (tmp_path / "x.safetensors").write_text("mine")
    with pytest.raises(UserError, match=r"exists and is not overwritten"):
        amradio.embed(model_folder, photos, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_text() == "mine"
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(UserError, match=r"out: .*mine is a file; give another name"):
        amradio.embed(model_folder, photos, tmp_path / "mine" / "x.safetensors")


def empty_shard(path: Path) -> Path:
    path.mkdir()
    tarfile.open(path / "0.tar", "w").close()
    return path


def both(path: Path) -> Path:
    empty_shard(path)
    (path / "a.jpg").write_bytes(jpeg(0))
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def all_broken(path: Path) -> Path:
    make_folder(path, 3, broken=(0, 1, 2))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "there is no such folder or file"),
        (lambda path: path.mkdir() or path, "there is no image in this folder"),
        (lambda path: written(path, "\n \n"), "it names no image"),
        (lambda path: written(path, b"a\0b"), "byte 2 is NUL, so this is no text"),
        (lambda path: written(path, "a.jpg\nb.jpg"), r"none of the 2 images can be read; the first: a\.jpg: No such file"),
        (empty_shard, r"none of the 0 images can be read; .*there is no image in it"),
        (both, r"tar shards in it, and images \(a\.jpg\)"),
        (all_broken, "none of the 3 images can be read"),
        (lambda path: f"{path}/*.tar", "there is no such tar shard"),
    ],
)
def test_bad_images(model, model_folder, tmp_path, make, message):
    images = make(tmp_path / "images")
    with pytest.raises(UserError, match=message):
        amradio.embed(model_folder, images, tmp_path / "x.safetensors", num_workers=0)
    with pytest.raises(UserError, match=message):
        list(embeddings(model, images))


def test_a_strip_is_left_out(model, tmp_path):
    Image.new("RGB", (5000, 2)).save(tmp_path / "a.png")
    Image.new("RGB", (50, 40)).save(tmp_path / "b.png")
    (batch,) = embeddings(model, tmp_path)
    assert batch.keys == ("b.png",)
    assert batch.broken == {"a.png": "5000x2 px: one side is more than 16 times the other"}


def test_numbers_beyond_half_precision_are_an_error(model, photos, tmp_path):
    large = Model(model.config, model.config.build())
    large.network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        for parameter in large.network.heads["clip"].summary.parameters():
            parameter.mul_(1e4)
    settings = validate(EmbedSettings, {"heads": ["clip"], "num_workers": 0})
    with pytest.raises(UserError, match=r"clip\.summary holds .* beyond float16; write dtype float32"):
        embed_images(large, open_images(photos), tmp_path / "x.safetensors", settings)


def test_a_large_jpeg_is_decoded_smaller(tmp_path):
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)).resize((1200, 800)).save(data, "JPEG")
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    (small,) = whole_images(open_images(tmp_path), [0], 64, 0)
    (whole,) = whole_images(open_images(tmp_path), [0], None, 0)
    assert small.image.shape == (3, 100, 150)
    assert whole.image.shape == (3, 800, 1200)
    down = [resize(image[None].float() / 255, (32, 48)) for image in (small.image, whole.image)]
    assert float((down[0] - down[1]).abs().mean()) < 0.01


def test_names_that_are_not_unicode(model_folder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).write_bytes(jpeg(0))
    amradio.embed(model_folder, folder, tmp_path / "x.safetensors", num_workers=0)
    assert keys_in(tmp_path / "x.safetensors") == ["\\xff.jpg"]
    assert from_key("\\xff.jpg") == os.fsdecode(b"\xff.jpg")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with amradio[data]")
    amradio.embed(model_folder, folder, tmp_path / "x.parquet", num_workers=0)
    assert parquet.read_table(tmp_path / "x.parquet")["key"].to_pylist() == ["\\xff.jpg"]
