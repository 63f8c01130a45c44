"""Affine maps of features: applied, composed, inverted and folded, as vectors and as matrices, against the maps written out."""

import pytest
import torch
from torch import Tensor, nn

from amradio.affine import Affine
from amradio.distillation.statistics import Moments

DIM = 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def vector(seed: int) -> Affine:
    return Affine(draw(DIM, seed=seed).abs() + 0.5, draw(DIM, seed=seed + 1))


def matrix(seed: int) -> Affine:
    return Affine(draw(DIM, DIM, seed=seed) + 3 * torch.eye(DIM, dtype=torch.float64), draw(DIM, seed=seed + 1))


KINDS = [vector, matrix]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_map_of_its_matrix(kind) -> None:
    affine, x = kind(1), draw(2, 3, DIM, seed=9)
    torch.testing.assert_close(affine(x), torch.einsum("ij,abj->abi", affine.matrix(), x) + affine.shift)


@pytest.mark.parametrize("kind", KINDS)
def test_the_inverse_undoes_it(kind) -> None:
    affine, x = kind(1), draw(4, DIM, seed=9)
    torch.testing.assert_close(affine.inverse()(affine(x)), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", KINDS)
def test_composition_and_the_map_between_two_spaces(outer, inner) -> None:
    first, second, x = inner(1), outer(5), draw(4, DIM, seed=9)
    torch.testing.assert_close(second.after(first)(x), second(first(x)), rtol=1e-12, atol=1e-12)
    between = first.relative_to(second)
    torch.testing.assert_close(second(between(x)), first(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cells", [1, 4])
def test_folding_is_the_map_after_the_layer(kind, cells: int) -> None:
    affine, x = kind(1), draw(6, 7, seed=9)
    torch.manual_seed(0)
    linear = nn.Linear(7, DIM * cells).double()
    expected = affine(linear(x).unflatten(1, (cells, DIM))).flatten(1)
    affine.fold(linear)
    torch.testing.assert_close(linear(x), expected, rtol=1e-12, atol=1e-12)


def test_moments_sum_a_covariance_where_it_is_asked_for() -> None:
    rows = draw(40, DIM, seed=3) @ draw(DIM, DIM, seed=4) + 2
    moments, parts = Moments(DIM, covariance=True), [Moments(DIM, covariance=True) for _ in range(2)]
    moments.update(rows.unflatten(0, (4, 10)))
    for part, some in zip(parts, rows.split([15, 25]), strict=True):
        part.update(some)
    torch.testing.assert_close(moments.covariance(), torch.cov(rows.T, correction=0))
    torch.testing.assert_close(moments.finish()[1], rows.std(0, correction=0))
    torch.testing.assert_close(parts[0].sums + parts[1].sums, moments.sums)  # so processes add theirs up
    with pytest.raises(AssertionError, match="not summed"):
        Moments(DIM).covariance()
