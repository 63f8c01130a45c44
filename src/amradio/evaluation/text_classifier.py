"""Classification by text: models whose summary is in the space of a teacher's text encoder, prompts and class embeddings."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError, nearest, shown
from ..features import Kind
from ..files import read_lines, user_path
from ..libraries import need
from ..teachers.base import Teacher
from .base import Bench
from .predictors import Predict

TEXTS_AT_ONCE = 2048


def texted(predict: Predict, bench: Bench, names: Sequence[str] | None) -> dict[str, tuple[Teacher, Predict]]:
    """{teacher: (the teacher, its rows `student/<teacher>` and `teacher/<teacher>` of `predict`)} for teachers with a text encoder.

    names: which teachers, None for all that have one. Raises UserError where there is none, or a named one has none.
    """
    able = [name for name, teacher in bench.teachers.items() if teacher.has_text]
    if not able:
        loaded = ", ".join(f"'{name}'" for name in bench.teachers) or "no teacher"
        raise UserError(
            f"a text encoder is needed, and none of the teachers has one (there is: {loaded}); "
            "add a teacher of type clip, open_clip or siglip under the name of the head"
        )
    problems = [
        f"heads: '{name}' has no text encoder; these have one: {', '.join(able)}"
        if name in bench.teachers
        else f"heads: there is no teacher '{name}'; {nearest(name, able)}"
        for name in names or ()
        if name not in able
    ]
    if problems:
        raise UserError(*problems)
    groups: dict[str, tuple[Teacher, Predict]] = {}
    for name in names or able:
        rows = {row: predict[row] for row in (f"student/{name}", f"teacher/{name}") if row in predict}
        if rows:
            groups[name] = (bench.teachers[name], rows)
    if not groups:
        raise UserError(f"models: none of the rows {', '.join(predict)} is in the space of a text encoder; add student/{able[0]}")
    return groups


def read_templates(templates: str | Sequence[str]) -> list[str]:
    """Prompts with one `{}` each: a list, `openai` for OpenAI's 80 of ImageNet, or a text file with one a line. Raises UserError."""
    if templates == "openai":
        return [template("{}") for template in need("open_clip", "templates: openai").OPENAI_IMAGENET_TEMPLATES]
    if isinstance(templates, str):
        file = user_path(templates, "templates")
        if not file.exists():
            raise UserError(
                f"templates: {shown(file)}: there is no such file; give 'openai', a list, or a text file with one prompt a line"
            )
        templates = [line.strip() for line in read_lines(file) if line.strip()]
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise UserError(f"templates: each has one {{}} where the class goes, found {wrong[0]!r}" if wrong else "templates: there is none")
    return list(templates)


def class_embeddings(teacher: Teacher, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Embeddings of class names, float32 [C, D] of length 1: every prompt normalised, their mean over templates, normalised.

    The published rule of CLIP's zero-shot classifier (Radford et al. 2021, section 3.1.4).
    """
    at_once = max(1, TEXTS_AT_ONCE // len(templates))
    parts = []
    for start in range(0, len(classes), at_once):
        prompts = [template.replace("{}", name) for name in classes[start : start + at_once] for template in templates]
        embeddings = F.normalize(teacher.encode_text(prompts), dim=1)
        parts.append(F.normalize(embeddings.unflatten(0, (-1, len(templates))).mean(1), dim=1))
    return torch.cat(parts)


def same_names(classes: Sequence[str]) -> tuple[str, ...]:
    """A note where several classes have one name, so that no prompt tells them apart (ImageNet has two pairs); else empty."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if not twice:
        return ()
    named = ", ".join(repr(name) for name in twice[:5]) + (" ..." if len(twice) > 5 else "")
    return (f"{len(twice)} names belong to several classes each, of which the first is always predicted: {named}",)


def summary_rows(groups: Iterable[tuple[Teacher, Predict]]) -> Predict:
    """All rows together."""
    return {row: call for _, rows in groups for row, call in rows.items()}


def taught(predict: Predict, bench: Bench, kind: Kind) -> Predict:
    """Less the heads that have no features of this kind; raises UserError where none is left."""
    config = bench.model.config.heads if bench.model is not None else {}
    without = [name for name in predict if name.startswith("student/") and config[name.removeprefix("student/")].part(kind) is None]
    left = {name: call for name, call in predict.items() if name not in without}
    if not left:
        lack = {
            "summary": "no summary to compare with texts; train it with summary_weight 1",
            "spatial": "no map; train it with a spatial_weight above 0",
        }
        raise UserError(f"{', '.join(without)}: this head has {lack[kind]}")
    return left
