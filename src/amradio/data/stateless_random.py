"""Random numbers without a state: each is a function of a seed and of where it is used.

Built on raw Philox words and integer arithmetic only, which no release of numpy changes, so a run resumes on another machine.
"""

from functools import lru_cache

import numpy as np

_WORD = (1 << 64) - 1
_ROUNDS = 6


def uniform(seed: int, stream: int, step: int, first: int, count: int, width: int) -> np.ndarray:
    """float32 [count, width], uniform in [0, 1): row i is a function of (seed, stream, step, first + i) alone.

    `width` is a multiple of 8 (one Philox block gives 8 numbers). Philox: Salmon et al., SC 2011.
    """
    assert width % 8 == 0
    blocks = width // 8
    counter = np.array((first * blocks, step, stream, 0), dtype=np.uint64)
    words = np.random.Philox(key=_philox_key(seed), counter=counter).random_raw(4 * blocks * count)
    return (words.view(np.uint32).reshape(count, width) >> 8).astype(np.float32) * np.float32(2**-24)


@lru_cache(maxsize=64)
def _philox_key(seed: int) -> np.ndarray:
    return np.random.SeedSequence(seed).generate_state(2, np.uint64)


def key_of(*numbers: int) -> int:
    """A 64-bit key that mixes non-negative integers; another order gives another key."""
    key = 0
    for number in numbers:
        key = _mix(key ^ _mix(number & _WORD)) ^ (number >> 64)
    return key & _WORD


def permuted(number: int, count: int, key: int) -> int:
    """Where `number` goes in the permutation `key` of `range(count)`, without a table: any count, no memory.

    A Feistel network over the next power of four, walked until it lands inside (Black and Rogaway, CT-RSA 2002).
    """
    assert 0 <= number < count
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = number >> half, number & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(key ^ (turn << 56) ^ right) & low)
        number = left << half | right
        if number < count:
            return number


def _mix(word: int) -> int:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31
