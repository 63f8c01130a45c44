"""amradio: distil any set of vision foundation models into one student."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands.distill import distill
    from .commands.embed import embed
    from .commands.evaluate import evaluate
    from .commands.export import export
    from .embedding import embeddings
    from .errors import UserError
    from .features import Features
    from .model import Model, load
    from .recipe import Recipe

__version__ = "0.1.0"
__all__ = ["Features", "Model", "Recipe", "UserError", "distill", "embed", "embeddings", "evaluate", "export", "load"]

_HOMES = {
    "Features": "features",
    "Model": "model",
    "Recipe": "recipe",
    "UserError": "errors",
    "distill": "commands.distill",
    "embed": "commands.embed",
    "embeddings": "embedding",
    "evaluate": "commands.evaluate",
    "export": "commands.export",
    "load": "model",
}


def __getattr__(name: str) -> Any:
    """Imports public names when they are first used, so that `amradio --help` is quick."""
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'amradio' has no attribute '{name}'")
