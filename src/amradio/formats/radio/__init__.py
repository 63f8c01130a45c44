"""The published RADIO layout, whatever file it lies in: its names, its teachers' tokens, reading and writing."""

from .layout import Published, split
from .reading import network_of
from .rules import compare_rules
from .writing import publish, spelt, supported_heads, unsupported_reasons

__all__ = ["Published", "compare_rules", "network_of", "publish", "spelt", "split", "supported_heads", "unsupported_reasons"]
