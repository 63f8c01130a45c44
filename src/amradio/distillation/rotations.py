"""Target spaces that mix channels, of the mean and the covariance of a teacher's features (PHI-S, arXiv 2410.01680, section 2.1).

With covariance U L U^T and H orthogonal, `scale` of `feature = scale @ target + shift` is U L^1/2 (PCA), U L^1/2 U^T (ZCA),
U L^1/2 H^T (Hadamard) or phi U H^T with phi^2 the mean of L (PHI-S). All of it is float64 on the CPU.
"""

import torch
from torch import Tensor

from .hadamard import has_hadamard, orthogonal

SMALLEST_SHARE = 1e-10
"""Of the largest eigenvalue: directions whose variance is below are constant but for the rounding of float32 features (variance
some 4e-15 of their square, with means of up to a hundred deviations), and are left at their scale."""


def eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D], ascending and not below 0, and eigenvectors [D, D] in columns, the largest entry of each positive.

    Where features vary in fewer directions than there are channels (few samples), a basis of the others is chosen that does not depend on
    rounding: in it, the channel's number as a quadratic form is diagonal.
    """
    values, vectors = torch.linalg.eigh(covariance.double().cpu())
    still = _is_constant(values)
    rest = vectors[:, still]
    numbers = torch.arange(len(values), dtype=torch.float64)
    vectors[:, still] = rest @ torch.linalg.eigh(rest.T @ (numbers[:, None] * rest))[1]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values.clamp_min(0), vectors * largest.sign()


def deviations(values: Tensor) -> Tensor:
    """The deviation along each eigenvector, [D]; 1 where there is next to none."""
    return torch.where(_is_constant(values), torch.ones_like(values), values.sqrt())


def _is_constant(values: Tensor) -> Tensor:
    return values <= SMALLEST_SHARE * values.max()


def pca(covariance: Tensor) -> Tensor:
    """The scale [D, D] of PCA whitening."""
    values, vectors = eigen(covariance)
    return vectors * deviations(values)


def zca(covariance: Tensor) -> Tensor:
    """The scale [D, D] of ZCA whitening."""
    return pca(covariance) @ eigen(covariance)[1].T


def hadamard_whitening(covariance: Tensor) -> Tensor:
    """The scale [D, D] of Hadamard whitening."""
    return pca(covariance) @ orthogonal(len(covariance)).T


def phi_s(covariance: Tensor) -> Tensor:
    """The scale [D, D] of PHI-S: a rotation (or reflection) times one number, in which every channel has variance 1."""
    values, vectors = eigen(covariance)
    spread = values.mean().sqrt()
    rotation = orthogonal(len(values)) if has_hadamard(len(values)) else balancing(values)
    return (spread if spread > 0 else 1.0) * vectors @ rotation.T


def balancing(values: Tensor) -> Tensor:
    """An orthogonal V [D, D] for which all of the diagonal of V diag(values) V^T is the mean of the values.

    For sizes without a Hadamard matrix. From the discrete Hartley transform on, rotations of two rows, D - 1 at most, each make one element
    the mean (Bendel and Mickey, 1978).
    """
    rotation = orthogonal(len(values))
    mean = values.mean()
    diagonal = rotation.square() @ values
    for _ in range(len(values) - 1):
        low, high = int(diagonal.argmin()), int(diagonal.argmax())
        if diagonal[high] - diagonal[low] <= 1e-14 * mean:
            break
        below, above = diagonal[low] - mean, diagonal[high] - mean
        across = (rotation[low] * rotation[high]) @ values
        root = (across.square() - below * above).sqrt()
        tangent = below / (-across - root) if across > 0 else below / (-across + root)  # the smaller root, without cancellation
        cosine = (1 + tangent.square()).rsqrt()
        first, second = rotation[low].clone(), rotation[high].clone()
        rotation[low], rotation[high] = cosine * (first + tangent * second), cosine * (second - tangent * first)
        diagonal[low], diagonal[high] = mean, diagonal[high] + below
    return rotation
