"""Views and alignment: what each model sees, and the part of two maps that shows the same part of an image."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from amradio.batch import Batch
from amradio.distillation.alignment import align_regions
from amradio.distillation.metrics import compare
from amradio.distillation.mosaic import Tiling
from amradio.distillation.pointwise import mse
from amradio.distillation.views import WHOLE, Partition, Region, ViewMaker
from amradio.engine.distributed import Processes
from amradio.engine.parallel import parallelize
from amradio.features import Features
from amradio.images import resize
from amradio.teachers.base import Teacher


class Patches(Teacher):
    """A linear map of every patch: it depends on no position. Its weights are whole numbers, so that sums of them are exact."""

    def __init__(self, patch_size: int = 8, input_size: int | None = None, dim: int = 4) -> None:
        shape = {"patch_size": patch_size, "dims": (None, dim), "input_size": input_size}
        super().__init__(mean=(0.0,) * 3, std=(1.0,) * 3, licence="none", source="a test", **shape)
        draws = torch.Generator().manual_seed(3)
        self.weight = torch.randint(-4, 5, (dim, 3, patch_size, patch_size), generator=draws).float()

    def encode(self, images: torch.Tensor) -> Features:
        return Features(None, F.conv2d(images, self.weight, stride=self.patch_size).permute(0, 2, 3, 1))


def exact_images(batch: int, side: int) -> torch.Tensor:
    """float32 in [0, 1], multiples of 1 / 256."""
    return torch.randint(0, 257, (batch, 3, side, side), generator=torch.Generator().manual_seed(5)) / 256


def draws_of(batch: int) -> torch.Tensor:
    return torch.rand(batch, 8, generator=torch.Generator().manual_seed(6))


def test_sizes_are_decided_in_one_place() -> None:
    views = ViewMaker({"any": Patches(14), "fixed": Patches(16, 64), "listed": Patches(16)}, 8)
    partition = Partition("0.0", ("any", "fixed", "listed"), (48, 40), teacher_sizes={"listed": (32, 32)})
    images = torch.randint(0, 256, (2, 3, 80, 80), dtype=torch.uint8)
    made = views.of(images, partition)
    assert views.largest_size(partition) == (64, 48)
    expected = {"any": (42, 42), "fixed": (64, 64), "listed": (32, 32)}
    assert {name: tuple(view.images.shape[-2:]) for name, view in made.teachers.items()} == expected
    torch.testing.assert_close(made.student.images, resize(images.float() / 255, (48, 40)), rtol=0, atol=0)
    assert {made.student.region, *(view.region for view in made.teachers.values())} == {WHOLE}


def test_shifted_views_are_windows_at_whole_patches_drawn_for_each_model_and_image() -> None:
    views = ViewMaker({"same": Patches(8), "fine": Patches(4), "coarse": Patches(16)}, 8)
    partition = Partition("0.0", ("same", "fine", "coarse"), (32, 32), shift=1)
    images = exact_images(64, 48)
    made = views.of(images, partition, draws_of(64))
    offsets = {}
    for name, view, patch, margin in (
        ("student", made.student, 8, 1),
        ("same", made.teachers["same"], 8, 1),
        ("fine", made.teachers["fine"], 4, 2),
    ):
        side = 32 + 2 * margin * patch
        canvas = resize(images, (side, side))
        assert (view.region.height, view.region.width) == (32 / side, 32 / side)
        edges = torch.stack((view.region.top, view.region.left)) * side
        for image, (top, left) in enumerate(edges.T.tolist()):
            assert top % patch == left % patch == 0
            top, left = int(top), int(left)
            assert torch.equal(view.images[image], canvas[image, :, top : top + 32, left : left + 32])
        offsets[name] = edges.flatten() / patch
        assert set(offsets[name].tolist()) == set(range(2 * margin + 1))
    assert torch.corrcoef(torch.stack(list(offsets.values()))).fill_diagonal_(0).abs().max() < 0.3
    assert made.teachers["coarse"].region.is_whole, "half of its patch is no shift"
    assert views.largest_size(partition) == (48, 48)
    other = views.of(images[10:20], partition, draws_of(64)[10:20])
    assert torch.equal(other.student.images, made.student.images[10:20]), "whatever the other images are"


@pytest.mark.parametrize("rule", ["larger", "smaller"])
def test_the_shift_loss_is_zero_for_a_student_that_is_equivariant(rule: str) -> None:
    """The student is the teacher, which depends on no position: exactly 0 where the views differ by whole cells, and not 0 unaligned."""
    teacher = Patches(8)
    views = ViewMaker({"a": teacher}, 8)
    made = views.of(exact_images(16, 64), Partition("0.0", ("a",), (48, 48), shift=1), draws_of(16))
    maps = [teacher(view.images).spatial for view in (made.student, made.teachers["a"])]
    prediction, target, valid = align_regions(*maps, rule, (made.student.region, made.teachers["a"].region))
    assert torch.equal(mse(prediction, target, valid), torch.zeros(16))
    shown = valid.flatten(1).sum(1)
    assert shown.min() < 36
    assert shown.max() == 36
    shifts = [torch.stack((view.region.top, view.region.left)) * 64 / 8 for view in (made.student, made.teachers["a"])]
    assert torch.equal(shown, (6 - (shifts[0] - shifts[1]).abs()).prod(0).round().long())
    assert mse(*maps).max() > 1


@pytest.mark.parametrize("rule", ["larger", "smaller"])
def test_maps_of_shifted_views_of_any_grid_meet_at_the_same_place(rule: str) -> None:
    """Against loops in float64: the centre of each cell, found in the other map; forward and gradient."""
    draws = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, *grid, 2, generator=draws, dtype=torch.float64, requires_grad=True) for grid in ((5, 6), (7, 8)))
    regions = [
        Region(torch.tensor(top, dtype=torch.float64), torch.tensor(left, dtype=torch.float64), height, width)
        for top, left, height, width in (([0.1, 0.0, 0.2], [0.0, 0.25, 0.1], 0.8, 0.75), ([0.0, 0.3, 0.1], [0.2, 0.0, 0.05], 0.7, 0.7))
    ]
    prediction, target, valid = align_regions(one, other, rule, (regions[0], regions[1]))
    (kept, frame), (moved, region) = (
        ((other, regions[1]), (one, regions[0])) if rule == "larger" else ((one, regions[0]), (other, regions[1]))
    )
    resampled = prediction if rule == "larger" else target
    assert (target if rule == "larger" else prediction) is kept
    expected = torch.empty_like(resampled)
    for index in itertools.product(*map(range, resampled.shape[:3])):
        corners, inside = [], True
        for axis in (0, 1):
            step = frame[2 + axis] / kept.shape[1 + axis]
            first = float(frame[axis][index[0]]) + step * index[1 + axis]
            cells = moved.shape[1 + axis]
            low, high = ((edge - float(region[axis][index[0]])) / region[2 + axis] * cells for edge in (first, first + step))
            inside = inside and low > -1e-3 and high < cells + 1e-3
            place = min(max((low + high) / 2 - 0.5, 0), cells - 1)
            corners.append([(int(place), 1 - place % 1), (min(int(place) + 1, cells - 1), place % 1)])
        expected[index] = sum(moved[index[0], y, x] * p * q for (y, p), (x, q) in itertools.product(*corners))
        assert bool(valid[index]) == inside
    assert 0 < valid.float().mean() < 1
    torch.testing.assert_close(resampled, expected, rtol=0, atol=2e-3)  # positions are rounded to 1 / 4096 of a cell
    weights = torch.randn(resampled.shape, generator=draws, dtype=torch.float64)
    gradients = [torch.autograd.grad((found * weights).sum(), moved, retain_graph=True)[0] for found in (resampled, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=4e-3)


@pytest.mark.parametrize(("side", "seen", "count"), [(16, 16, 16), (24, 24, 4), (27, 24, 4), (30, 32, 4), (40, 40, 1)])
def test_a_mosaic_equals_separate_encoding_where_the_teacher_knows_no_position(side: int, seen: int, count: int) -> None:
    """Tiles that fill the canvas, that leave space between them, that are no whole patches, and one that leaves no room for a second."""
    teacher = Patches(8, input_size=64)
    views = ViewMaker({"a": teacher}, 8)
    partition = Partition("0.0", ("a",), (side, side), mosaic=("a",))
    images = exact_images(5, 64)
    view = views.of(images, partition).teachers["a"]
    assert tuple(view.images.shape) == (-(-5 // count), 3, 64, 64), "the last canvas is not full"
    maps = view.features_of_images(teacher(view.images), 5)
    alone = Patches(8)(resize(images, (seen, seen))) if count > 1 else teacher(images)
    assert maps.summary is None
    assert torch.equal(maps.spatial, alone.spatial)
    assert view.region.is_whole
    assert views.largest_size(partition) == ((max(side, seen),) * 2 if count > 1 else (64, 64)), "no pixel is read that nobody sees"


@pytest.mark.parametrize(("size", "seen"), [((32, 64), (32, 64)), ((40, 24), (64, 40)), ((16, 60), (16, 64)), ((24, 24), (64, 64))])
def test_an_image_that_is_not_square_stands_in_the_canvas_of_a_teacher_of_one_size(size: tuple[int, int], seen: tuple[int, int]) -> None:
    """What it is alone at the largest size of its aspect that fits, for a teacher that knows no position."""
    teacher = Patches(8, input_size=64)
    views = ViewMaker({"a": teacher}, 8)
    images = exact_images(3, 64)
    view = views.of(images, Partition("0.0", ("a",), size)).teachers["a"]
    assert tuple(view.images.shape) == (3, 3, 64, 64)
    maps = view.features_of_images(teacher(view.images)._replace(summary=torch.ones(3, 2)), 3)
    assert torch.equal(maps.spatial, Patches(8)(resize(images, seen)).spatial)
    assert maps.summary.shape == (3, 2)


def test_what_no_image_of_a_mosaic_covers_has_the_mean_color() -> None:
    tiling = Tiling.of((40, 30), (64, 100), 8)
    assert (tiling.size, tiling.cell, tiling.rows, tiling.columns) == ((40, 32), (64, 32), 1, 3)
    color = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    (canvas,) = tiling.compose(torch.ones(2, 3, 40, 32), color)
    assert torch.equal(canvas[:, :40, :64], torch.ones(3, 40, 64))
    for part in (canvas[:, 40:], canvas[:, :, 64:]):
        assert torch.equal(part, color.expand_as(part))
    assert Tiling.of((40, 40), (64, 64), 8) is None


def test_shifted_images_of_a_mosaic_are_compared_where_both_show_the_image() -> None:
    teacher = Patches(8, input_size=64)
    views = ViewMaker({"a": teacher}, 8)
    made = views.of(exact_images(8, 40), Partition("0.0", ("a",), (24, 24), shift=1, mosaic=("a",)), draws_of(8))
    view = made.teachers["a"]
    maps = view.features_of_images(teacher(view.images), 8)
    prediction = Patches(8)(made.student.images).spatial
    *pair, valid = align_regions(prediction, maps.spatial, "larger", (made.student.region, view.region))
    assert torch.equal(mse(*pair, valid), torch.zeros(8))
    assert 0 < valid.float().mean() < 1


def test_cells_that_one_view_does_not_show_count_in_no_loss_and_no_measure() -> None:
    draws = torch.Generator().manual_seed(1)
    prediction, target = (torch.randn(2, 3, 4, 5, generator=draws) for _ in range(2))
    valid = torch.rand(2, 3, 4, generator=draws) < 0.5
    spoilt = prediction.where(valid[..., None], 1e4)
    mean, std = torch.zeros(5), torch.ones(5)
    for clean, dirty in zip(
        compare(prediction, target, mean, std, valid).values(), compare(spoilt, target, mean, std, valid).values(), strict=True
    ):
        assert torch.equal(clean, dirty)
    for image in range(2):
        cells = [part[image][valid[image]] for part in (prediction, target)]
        alone = compare(*cells, mean, std)["cosine"].mean()
        torch.testing.assert_close(compare(prediction, target, mean, std, valid)["cosine"][image], alone)
    assert torch.equal(mse(prediction, target, valid), mse(spoilt, target, valid))


def test_features_by_kind() -> None:
    both, alone = Features(torch.zeros(1, 2), torch.ones(1, 3, 3, 4)), Features(None, torch.ones(1, 3, 3, 4))
    assert [kind for kind, _ in both.items()] == ["summary", "spatial"]
    assert [(kind, tensor is alone.spatial) for kind, tensor in alone.items()] == [("spatial", True)]
    assert both.of("summary") is both.summary
    assert alone.of("summary") is None


def test_pieces_are_those_of_any_number_of_processes() -> None:
    batch = Batch(torch.arange(8)[:, None], tuple("abcdefgh"), torch.arange(8)[:, None].float())
    pieces = [batch.piece(number, 2) for number in range(2)]
    halves = [batch._replace(images=batch.images[part], keys=batch.keys[part]) for part in (slice(0, 4), slice(4, 8))]
    for number, piece in enumerate(pieces):
        assert piece.keys == sum((half.piece(number, 2).keys for half in halves), ())
        assert piece.images.flatten().tolist() == [ord(key) - ord("a") for key in piece.keys]


def test_one_process_trains_the_module_as_it_is() -> None:
    module = torch.nn.Linear(2, 2)
    parallel = parallelize(module, Processes(torch.device("cpu")))
    loss = parallel(torch.ones(1, 2)).sum()
    assert parallel.complete(loss, module.parameters()) is loss
    with parallel.accumulating(last=False):
        (100 * loss).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).norm()
    torch.testing.assert_close(parallel.clip(1.0), norm)
    torch.testing.assert_close(torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).norm(), torch.tensor(1.0))
    assert parallel.full_state().keys() == module.state_dict().keys()
