"""Views and alignment: what each model sees, and the part of two maps that shows the same part of an image."""

import pytest
import torch

from amradio.batch import Batch
from amradio.distillation.alignment import align, crop_map
from amradio.distillation.views import WHOLE, Partition, Region, ViewMaker
from amradio.engine.distributed import Processes
from amradio.engine.parallel import parallelize
from amradio.features import Features, resize_grid
from amradio.images import resize


def grid(side: int) -> torch.Tensor:
    """[1, side, side, 2]: each cell holds its row and its column."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack((rows, columns), -1)[None].float()


def test_sizes_are_decided_in_one_place() -> None:
    views = ViewMaker({"any": lambda h, w: (h // 14 * 14, w // 14 * 14), "fixed": lambda h, w: (64, 64)})
    partition = Partition("0.0", ("any", "fixed"), (48, 48))
    images = torch.randint(0, 256, (2, 3, 80, 80), dtype=torch.uint8)
    made = views.of(images, partition)
    assert views.largest_size(partition) == (64, 64)
    assert {name: tuple(view.images.shape[-2:]) for name, view in made.teachers.items()} == {"any": (42, 42), "fixed": (64, 64)}
    torch.testing.assert_close(made.student.images, resize(images.float() / 255, (48, 48)), rtol=0, atol=0)
    assert {made.student.region, *(view.region for view in made.teachers.values())} == {WHOLE}


def test_a_shifted_view_is_compared_where_both_show_the_image() -> None:
    """The image has 8 x 8 cells; the student sees rows 0 to 6 and columns 2 to 8, the teacher rows 2 to 8 and columns 0 to 6."""
    whole = grid(8)
    student, teacher = Region(0, 2 / 8, 6 / 8, 6 / 8), Region(2 / 8, 0, 6 / 8, 6 / 8)
    seen, target = crop_map(whole, WHOLE, student), crop_map(whole, WHOLE, teacher)
    one, other = align(seen, target, "larger", (student, teacher))
    assert torch.equal(one, other)
    assert torch.equal(one, whole[:, 2:6, 2:6])


@pytest.mark.parametrize("rule", ["larger", "smaller"])
def test_a_shift_and_another_resolution(rule: str) -> None:
    coarse, fine = grid(4), grid(8)
    half = Region(0, 0.5, 1, 0.5)
    one, other = align(coarse, fine[:, :, 4:], rule, (WHOLE, half))
    side = (8, 4) if rule == "larger" else (4, 2)
    torch.testing.assert_close(one, resize_grid(coarse[:, :, 2:], side))
    torch.testing.assert_close(other, resize_grid(fine[:, :, 4:], side))


def test_parts_of_cells_are_refused() -> None:
    with pytest.raises(AssertionError, match="no whole cells"):
        crop_map(grid(4), WHOLE, Region(0.1, 0, 0.9, 1))
    with pytest.raises(AssertionError, match="nothing in common"):
        WHOLE.intersection(Region(1.0, 0, 1, 1))


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
