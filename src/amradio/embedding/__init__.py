from .batches import Embedding, embeddings
from .job import Embedded, embed_images
from .settings import EmbedSettings

__all__ = ["EmbedSettings", "Embedded", "Embedding", "embed_images", "embeddings"]
