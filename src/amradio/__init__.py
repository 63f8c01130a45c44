"""amradio: distil any set of vision foundation models into one student."""

from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .commands.distill import distill
    from .commands.embed import embed
    from .commands.evaluate import evaluate
    from .commands.export import export
    from .embedding import embeddings
    from .errors import UserError
    from .features import Features
    from .image_input import read_image
    from .model import Model, load
    from .recipe import Recipe

__version__ = "0.1.0"
__all__ = ["Features", "Model", "Recipe", "UserError", "distill", "embed", "embeddings", "evaluate", "export", "load", "read_image"]

__getattr__ = lazily(
    __name__,
    {
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
        "read_image": "image_input",
    },
)
