import hashlib
import platform
from pathlib import Path

import numpy as np
import pytest

from amradio.data.scene_shapes import SHAPES, TEXTURES, signed_distance
from amradio.data.scenes import CLASS_NAMES, COLOURS, SIZES, Scenes, draw_scene


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_scene_is_a_function_of_seed_and_index():
    first = draw_scene(3, 7)
    draw_scene(3, 8)
    np.random.default_rng(0).random()
    assert same(first, draw_scene(3, 7))
    assert not np.array_equal(first.image, draw_scene(3, 8).image)
    assert not np.array_equal(first.image, draw_scene(4, 7).image)


def test_the_world_stays_what_the_embedded_teachers_learnt():
    # A change of these numbers means that the teachers have to be trained again.
    scene = draw_scene(0, 0)
    assert CLASS_NAMES[scene.label] == "plain red"
    assert scene.image.mean() == pytest.approx(114.13, abs=0.2)
    assert scene.image[16, 32].tolist() == pytest.approx([239, 7, 29], abs=2)
    assert scene.captions[0] == "a photo of a plain red heart"


def kind_of_machine() -> str:
    """Where sines and matrix products are the same to the bit: one kind of processor, one numpy."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return f"{platform.machine()} {' '.join(sorted(word for word in words if word.startswith('avx')))} numpy {np.__version__}"


@pytest.mark.parametrize(
    ("image_size", "count", "rounded", "mean", "words", "pixels"),
    [
        (64, 48, (804, 1006, 1224, 1669, 2650), 108.571, "3d8e8d685ebc2d3a", "6916ab81ca160059"),
        (128, 24, (33, 132, 410), 109.973, "592efd2eb2fc1c41", "5cbe853b3991790b"),
    ],
)
def test_scenes_are_the_stored_ones(image_size: int, count: int, rounded: tuple[int, ...], mean: float, words: str, pixels: str):
    # Pictures and maps bit for bit on the kind of machine where they were recorded, labels and captions everywhere. The scenes of
    # `rounded` have a value next to where it is rounded: they were seen to differ where one product was in float32 in place of float64.
    scenes = [draw_scene(9, index, image_size) for index in range(count)] + [draw_scene(0, index, image_size) for index in rounded]
    drawn, told = hashlib.sha256(), hashlib.sha256()
    for scene in scenes:
        for pixel_map in (scene.image, scene.instance_masks, scene.semantic):
            drawn.update(pixel_map.tobytes())
        told.update(repr((scene.label, scene.captions, scene.instance_labels.tolist())).encode())
    assert np.mean([scene.image.mean() for scene in scenes]) == pytest.approx(mean, abs=0.05)
    assert told.hexdigest()[:16] == words
    if kind_of_machine() == "x86_64 avx avx2 avx512_vnni avx512bw avx512cd avx512dq avx512f avx512vl numpy 2.4.6":
        assert drawn.hexdigest()[:16] == pixels


def test_a_picture_or_the_words_alone_are_those_of_the_whole_scene():
    for index in range(24):
        scene = draw_scene(11, index, 32)
        assert np.array_equal(Scenes(24, 11, 32).image(index), scene.image)
        assert Scenes(24, 11, 128).label_and_captions(index) == (scene.label, scene.captions)


def test_shapes_and_types():
    for size in (64, 96, 256):
        scene = draw_scene(1, 2, size)
        number = len(scene.instance_labels)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.instance_masks.shape == (number, size, size)
        assert scene.instance_masks.dtype == bool
        assert scene.instance_labels.dtype == np.int64
        assert scene.semantic.shape == (size, size)
        assert scene.semantic.dtype == np.uint8


@pytest.mark.parametrize("index", range(12))
def test_masks_agree_with_the_semantic_mask_and_the_label(index):
    scene = draw_scene(5, index)
    assert scene.instance_masks.any((1, 2)).all(), "an object that nobody sees is listed"
    assert scene.instance_masks.sum(0).max() == 1, "objects share a pixel"
    expected = np.zeros(scene.semantic.shape, dtype=np.uint8)
    for mask, label in zip(scene.instance_masks, scene.instance_labels, strict=True):
        expected[mask] = 1 + label
    assert np.array_equal(scene.semantic, expected)
    assert scene.instance_labels[0] == scene.label
    assert scene.instance_masks[0].sum() == scene.instance_masks.sum((1, 2)).max(), "the principal object is not the largest"


def test_captions_name_the_principal_object():
    for index in range(50):
        scene = draw_scene(6, index)
        texture, colour = CLASS_NAMES[scene.label].split()
        assert len(scene.captions) >= 3
        assert all(texture in caption and colour in caption for caption in scene.captions)
        together = " ".join(scene.captions)
        assert any(shape in together for shape in SHAPES)
        assert any(size in together for size in SIZES)


@pytest.mark.slow
def test_classes():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == len(COLOURS) * len(TEXTURES) == 24
    labels = {draw_scene(7, index, 16).label for index in range(400)}
    assert labels == set(range(24))


def test_another_size_shows_the_same_scene():
    small, large = draw_scene(8, 3, 64), draw_scene(8, 3, 256)
    assert small.label == large.label
    assert small.captions == large.captions
    shrunk = large.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(shrunk - small.image).mean() < 12
    inside = large.semantic[2::4, 2::4] == small.semantic
    assert inside.mean() > 0.97


def test_every_shape_is_an_object_of_some_extent_within_its_reach():
    line = np.linspace(-1.4, 1.4, 141, dtype=np.float32)
    u, v = np.meshgrid(line, line)
    for shape in SHAPES:
        inside = signed_distance(shape, u, v) < 0
        assert 0.8 < inside.sum() * 0.02**2 < 3.2, shape
        assert not inside[np.hypot(u, v) > 1.25].any(), shape


def test_the_source_draws_what_it_says():
    source = Scenes(5, seed=2, image_size=32)
    assert len(source) == 5
    assert source.key(4) == "scene-2-4"
    assert np.array_equal(source.image(4), draw_scene(2, 4, 32).image)
    assert same(source.scene(1), draw_scene(2, 1, 32))
    with pytest.raises(IndexError, match="scene 5 of 5"):
        source.scene(5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="seed=-1"):
        draw_scene(-1, 0)
    with pytest.raises(ValueError, match="image_size=8"):
        draw_scene(0, 0, 8)


@pytest.mark.slow
def test_raw_pixels_do_not_tell_the_classes_apart():
    def pool(seed, length):
        drawn = [draw_scene(seed, index) for index in range(length)]
        vectors = np.stack([scene.image.reshape(-1) for scene in drawn]).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.array([scene.label for scene in drawn])

    known, labels = pool(20, 2000)
    asked, truth = pool(21, 500)
    nearest = np.argsort(-(asked @ known.T), axis=1)[:, :20]
    guess = np.array([np.bincount(labels[row], minlength=24).argmax() for row in nearest])
    assert (guess == truth).mean() <= 0.35
