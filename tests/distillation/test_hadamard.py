"""Hadamard matrices: orthogonal with equal magnitudes for the widths of teachers, and equal to stored ones."""

import hashlib

import pytest
import torch

from amradio.distillation.hadamard import hadamard, has_hadamard, orthogonal

SIGNS = {
    12: "db7478025ce74776a8a2669368885b71737288dabf1e23985366a367b4f78ab9",
    20: "d04b560308676ee7cb59dd0f11653ead6c5f5efcbe97f1b57fe11bd39ee46faa",
    24: "9c52b69d8b03ff1e2049f1c2a19a8549f7e72e8772427ee4edc0aaec9288475d",
    48: "6ee6e139fbf26b7b13f4255c4aba168b15ebd9f9bf297fd3fc1518d05b2cc98c",
    64: "4be469934f00a70b701ba4d1d2f489d817feb9fce017ad0decb3433bb851aae0",
    768: "2df1bfb9ec4fa584756bf5ec390fd61136dd4a45c59a70226e23c225e672d460",
}
"""SHA-256 of the signs, int8 row by row, as RADIO's released code builds them."""
WIDTHS = (12, 20, 24, 28, 36, 48, 768, 1152, 1280, 1408, 1536, 4096)
FIELDS = (28, 52, 82 + 82, 244, 100, 20 * 20)
"""Over prime powers: Paley I of 27 and 243, Paley II of 25, 81 and 49; a product of two Paley matrices."""


@pytest.mark.parametrize("size", [1, 2, 4, *WIDTHS, *FIELDS])
def test_rows_are_orthogonal_and_entries_of_one_magnitude(size):
    found = hadamard(size).to(torch.float32)  # sums of at most 4096 ones are exact
    assert found.shape == (size, size)
    assert (found.abs() == 1).all()
    assert torch.equal(found @ found.T, size * torch.eye(size))


@pytest.mark.parametrize("size", SIGNS)
def test_signs_equal_the_stored_ones(size):
    assert hashlib.sha256(hadamard(size).numpy().tobytes()).hexdigest() == SIGNS[size]


@pytest.mark.parametrize("size", [0, 3, 6, 90, 92, 668])
def test_sizes_without_a_matrix_are_refused_and_have_an_orthogonal_one(size):
    """92 has one (Williamson), which these constructions do not give; 668 is the smallest for which none is known."""
    assert not has_hadamard(size)
    with pytest.raises(ValueError, match=f"no construction gives a Hadamard matrix of {size} rows"):
        hadamard(size)
    if size:
        found = orthogonal(size)
        torch.testing.assert_close(found @ found.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


def test_how_many_sizes_are_covered():
    assert sum(has_hadamard(size) for size in range(4, 4097, 4)) == 692
    assert not any(has_hadamard(size) for size in range(3, 400) if size % 4)


def test_orthogonal_is_the_matrix_over_its_norm():
    torch.testing.assert_close(orthogonal(20) * 20**0.5, hadamard(20).double())
