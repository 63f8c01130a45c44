"""Readable names for folders that are called after WordNet's synsets, as ImageNet's are (n02012849)."""

import re
from collections.abc import Iterable

from ..libraries import need


def is_synset(folder: str) -> bool:
    """Whether a folder is called after a noun of WordNet 3.0: `n` and eight digits."""
    return re.fullmatch(r"n[0-9]{8}", folder) is not None


def synset_names(synsets: Iterable[str]) -> dict[str, str]:
    """{synset: name} for all that have one.

    The 1,000 of ImageNet-1k get the names with which CLIP's and OpenCLIP's zero-shot figures are published (open_clip's list, in the
    order of the synsets); the others of ImageNet-21k the first lemma of WordNet, from timm's table.
    """
    wanted = list(synsets)
    if not wanted:
        return {}
    from timm.data.imagenet_info import ImageNetInfo

    names = need("open_clip", "class names of WordNet folders").IMAGENET_CLASSNAMES
    prompted = dict(zip(ImageNetInfo("imagenet-1k").label_names(), names, strict=True))
    whole = ImageNetInfo("imagenet-22k")
    lemmas = {name: whole.label_name_to_description(name).split(",")[0] for name in whole.label_names()}
    known = lemmas | prompted
    return {synset: known[synset] for synset in wanted if synset in known}
