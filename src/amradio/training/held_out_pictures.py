"""Pictures of held-out images: the map of each head beside the target that it learns, in the same colours."""

from collections.abc import Iterator

import torch

from ..batch import Batch
from ..distillation.task import Distillation
from ..distillation.views import Partition
from ..drawing.panels import Panel, as_picture, principal_components

DRAWN_IMAGES = 2
"""Images of each head."""


@torch.no_grad()
def held_out_panels(
    task: Distillation, batch: Batch, partition: Partition, autocast: torch.dtype | None
) -> Iterator[tuple[str, list[Panel]]]:
    """(head, panels) of every head with a map: for each image the picture, the teacher's map and the student's.

    Maps are in target space and on one grid, in the colours of the teacher's three principal components over all of these images. batch:
    on any device; its first `DRAWN_IMAGES` images are drawn. Changes neither weights nor statistics.
    """
    device = next(task.parameters()).device
    few = Batch(batch.images[:DRAWN_IMAGES], batch.keys[:DRAWN_IMAGES], batch.draws[:DRAWN_IMAGES]).to(device)
    was_training = task.training
    task.eval()
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        prepared = task.prepare(few, partition)
        predictions = task.predict(prepared.views.student, None, partition)
    images = prepared.views.student.images
    height, width = images.shape[-2:]
    for pair in task.pairs(predictions, prepared):
        if pair.kind != "spatial":
            continue
        components = principal_components(pair.target.flatten(0, 1))
        panels = []
        for number, image in enumerate(images.float()):
            panels.append(Panel(str(number), few.keys[number], as_picture(image.permute(1, 2, 0), height, width, smooth=True)))
            for who, maps in (("teacher", pair.target), ("student", pair.prediction)):
                title = f"{who}, {pair.teacher}: {maps.shape[1]} x {maps.shape[2]} cells"
                panels.append(Panel(str(number), title, as_picture(components.colours(maps[number]), height, width)))
        yield pair.teacher, panels
    task.train(was_training)
