"""`amradio.load` and what it returns: a frozen model with a head per teacher."""

from .described_network import head_names
from .embedded_set import EmbeddedSet
from .loading import load
from .model import Model

__all__ = ["EmbeddedSet", "Model", "head_names", "load"]
