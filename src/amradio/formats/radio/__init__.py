"""The published RADIO layout, whatever file it lies in: its names, its teachers' tokens, reading and writing."""

from .layout import Published, split
from .reading import network_of
from .rules import compare_rules
from .writing import carries, lacks, publish, spelt

__all__ = ["Published", "carries", "compare_rules", "lacks", "network_of", "publish", "spelt", "split"]
