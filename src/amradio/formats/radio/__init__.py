"""The published RADIO layout, whatever file it lies in: its names, its teachers' tokens, reading and writing."""

from .layout import Published, to_our_names
from .reading import network_of
from .rules import compare_rules
from .writing import publish, supported_heads, unsupported_reasons, weights_in_file

__all__ = [
    "Published",
    "compare_rules",
    "network_of",
    "publish",
    "supported_heads",
    "to_our_names",
    "unsupported_reasons",
    "weights_in_file",
]
