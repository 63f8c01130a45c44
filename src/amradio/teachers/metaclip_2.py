"""MetaCLIP 2 as in transformers (`MetaClip2Model`): the towers of CLIP with a multilingual tokenizer."""

from .adapter import Origin
from .catalogue import licence_of
from .clip import ClipTeacher
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import of_processor
from .settings import Metaclip2Settings


def build(settings: Metaclip2Settings) -> ClipTeacher:
    """Loads the MetaClip2Model of `settings`; raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    model, folder = load_transformers(source, {"metaclip_2": "MetaClip2Model"})
    vision = model.config.vision_config
    check_override(source, settings.input_size, vision.patch_size, vision.image_size)
    native = {"height": vision.image_size, "width": vision.image_size}
    processor = load_processor(folder, "CLIPImageProcessor", size={"shortest_edge": vision.image_size}, crop_size=native)
    origin = Origin(settings.model, licence_of(settings.model, folder))
    teacher = ClipTeacher(model, of_processor(processor), settings.input_size or vision.image_size, origin, settings.precision)
    teacher.folder = folder
    return teacher
