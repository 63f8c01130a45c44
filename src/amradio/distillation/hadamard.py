"""Hadamard matrices: square, of entries 1 and -1, with orthogonal rows.

Constructions: Sylvester (powers of two), Paley I (q + 1 for a prime power q of 3 modulo 4), Paley II (2 (q + 1) for one of 1 modulo 4;
Paley, 1933), and Kronecker products of these. PHI-S (arXiv 2410.01680, section 2.2) needs one of as many rows as a teacher has channels.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

SYLVESTER = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
PALEY_DIAGONAL = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
"""What stands on the diagonal of a Paley II matrix."""


def has_hadamard(size: int) -> bool:
    """Whether `hadamard` builds a matrix of this size: for 692 of the 1024 multiples of 4 up to 4096."""
    return _plan(size) is not None


def hadamard(size: int) -> Tensor:
    """A Hadamard matrix, int8 [size, size]; ValueError where no construction gives one.

    Of several constructions the one with the largest Sylvester factor is taken.
    """
    build = _plan(size)
    if build is None:
        raise ValueError(f"no construction gives a Hadamard matrix of {size} rows")
    return build()


def orthogonal(size: int) -> Tensor:
    """An orthogonal matrix, float64 [size, size]: a Hadamard matrix over its norm, else the discrete Hartley transform."""
    if has_hadamard(size):
        return hadamard(size).double() / math.sqrt(size)
    places = torch.arange(size, dtype=torch.float64)
    angles = 2 * math.pi / size * (torch.outer(places, places) % size)
    return (angles.cos() + angles.sin()) / math.sqrt(size)


@cache
def _plan(size: int) -> Callable[[], Tensor] | None:
    """What builds a matrix of this size, None where nothing does."""
    if size < 1 or (size > 2 and size % 4):
        return None
    power = size & -size
    if power == size:
        return lambda: _sylvester(size)
    while power:
        core = _paley(size // power)
        if core is not None:
            return lambda power=power, core=core: torch.kron(_sylvester(power), core())
        power //= 2
    for factor in range(4, math.isqrt(size) + 1, 4):
        first, second = (_plan(factor), _plan(size // factor)) if size % factor == 0 else (None, None)
        if first is not None and second is not None:
            return lambda first=first, second=second: torch.kron(first(), second())
    return None


def _sylvester(size: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.int8)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _paley(size: int) -> Callable[[], Tensor] | None:
    """What builds a Paley I or II matrix of this size, None where neither exists."""
    if size % 4:
        return None
    first, second = _prime_power(size - 1), _prime_power(size // 2 - 1)
    if first is not None:
        return lambda: _paley_one(*first)
    if second is not None and (size // 2 - 1) % 4 == 1:
        return lambda: _paley_two(*second)
    return None


def _paley_one(prime: int, degree: int) -> Tensor:
    size = prime**degree + 1
    matrix = torch.ones(size, size, dtype=torch.int8)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = _characters(prime, degree) + torch.eye(size - 1, dtype=torch.int8)
    return matrix


def _paley_two(prime: int, degree: int) -> Tensor:
    size = prime**degree + 1
    conference = torch.ones(size, size, dtype=torch.int8)
    conference[0, 0] = 0
    conference[1:, 1:] = _characters(prime, degree)
    return torch.kron(conference, SYLVESTER) + torch.kron(torch.eye(size, dtype=torch.int8), PALEY_DIAGONAL)


def _characters(prime: int, degree: int) -> Tensor:
    """int8 [q, q]: for elements a, b of the field of q = prime^degree, 1 where a - b is a square, 0 where it is 0, else -1."""
    size = prime**degree
    values = torch.zeros(size, dtype=torch.int8)
    powers = torch.tensor(_powers_of_a_generator(prime, degree))
    values[powers[0::2]], values[powers[1::2]] = 1, -1
    weights = prime ** torch.arange(degree)
    digits = torch.arange(size)[:, None] // weights % prime
    return torch.stack([values[((row - digits) % prime * weights).sum(1)] for row in digits])


def _powers_of_a_generator(prime: int, degree: int) -> list[int]:
    """All elements of the field but 0, as x^0, x^1, ... for a root x of a primitive polynomial over the integers modulo `prime`.

    An element is a polynomial in x below `degree`; it is numbered by its coefficients as digits to the base `prime`, lowest first.
    """
    for number in range(1, prime**degree):
        tail = [number // prime**power % prime for power in range(degree)]  # x^degree = tail[0] + tail[1] x + ...
        powers = list(_orbit(prime, tail)) if tail[0] else []
        if len(powers) == prime**degree - 1:
            return powers
    raise AssertionError("every finite field has a generator")


def _orbit(prime: int, tail: list[int]) -> Iterator[int]:
    """1, x, x^2, ... until 1 comes again; x has an inverse, as tail[0] is not 0."""
    degree = len(tail)
    one = [1] + [0] * (degree - 1)
    element = one
    for _ in range(prime**degree - 1):
        yield sum(digit * prime**power for power, digit in enumerate(element))
        carried = element[-1]
        element = [(low + carried * part) % prime for low, part in zip([0, *element[:-1]], tail, strict=True)]
        if element == one:
            return


@cache
def _prime_power(number: int) -> tuple[int, int] | None:
    """(prime, exponent) of a power of an odd prime, else None."""
    if number < 3:
        return None
    prime = next((factor for factor in range(2, math.isqrt(number) + 1) if number % factor == 0), number)
    exponent = round(math.log(number, prime))
    return (prime, exponent) if prime > 2 and prime**exponent == number else None
