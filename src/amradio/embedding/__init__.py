from typing import TYPE_CHECKING

from ..lazy import lazily
from .settings import EmbedSettings

if TYPE_CHECKING:
    from .batches import Embedding, embeddings
    from .job import Embedded, embed_images

__all__ = ["EmbedSettings", "Embedded", "Embedding", "embed_images", "embeddings"]

__getattr__ = lazily(__name__, {"Embedding": "batches", "embeddings": "batches", "Embedded": "job", "embed_images": "job"})
