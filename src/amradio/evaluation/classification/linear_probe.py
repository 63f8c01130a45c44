"""A linear probe on frozen features, for a whole sweep of learning rates at once."""

from typing import Literal, NamedTuple

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import LearningRate, Positive, Seed
from ...labelled.classification import AnyLabelled, LabelledSet, labels_in, share_of_most_frequent
from ..base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result
from ..reading import Broken
from ..summaries import summaries

MOMENTUM = 0.9
HELD_OUT = 10
"""Every tenth training image chooses the learning rate."""


class LinearClassificationSettings(EvaluationSettings):
    """Softmax regression on standardized summaries: SGD with momentum 0.9, cosine schedule, one classifier for each learning rate."""

    type: Literal["linear_classification"] = "linear_classification"
    train: AnyLabelled
    """Images to learn from; every tenth chooses the learning rate instead."""
    test: AnyLabelled
    """Images to measure on."""
    learning_rates: list[LearningRate] = pydantic.Field([1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3], min_length=1)
    """All are trained together, one classifier for each."""
    epochs: Positive = 30
    """Passes over the training images."""
    batch_size: Positive = 256
    """Images a step."""
    seed: Seed = 0
    """Of the order of the images."""

    def build(self) -> "LinearClassification":
        """Opens both sets; raises UserError where one is missing or their classes do not match."""
        schedule = ClassifierSchedule(tuple(self.learning_rates), self.epochs, self.batch_size, self.seed)
        return LinearClassification(self.train.build(), self.test.build(), schedule)


class ClassifierSchedule(NamedTuple):
    """How the probe is trained."""

    learning_rates: tuple[float, ...]
    epochs: int
    batch_size: int
    seed: int = 0


def train_probes(features: Tensor, labels: Tensor, num_classes: int, schedule: ClassifierSchedule) -> tuple[Tensor, Tensor]:
    """Weights [L, D, C] and biases [L, 1, C] of L classifiers, one a learning rate, trained together on the same batches.

    features: float32 [N, D], standardized; labels: int64 [N]. The same on every call.
    """
    rates = torch.tensor(schedule.learning_rates, device=features.device)[:, None, None]
    weights = [features.new_zeros(len(rates), size, num_classes) for size in (features.shape[1], 1)]
    velocities = [torch.zeros_like(weight) for weight in weights]
    draws = torch.Generator().manual_seed(schedule.seed)
    steps = schedule.epochs * -(-len(features) // schedule.batch_size)
    order = torch.cat([torch.randperm(len(features), generator=draws) for _ in range(schedule.epochs)]).to(features.device)
    batches = [batch for epoch in order.split(len(features)) for batch in epoch.split(schedule.batch_size)]
    for step, batch in enumerate(batches):
        rate = rates * (0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)))).to(rates.device)
        seen = features[batch]
        logits = torch.matmul(seen, weights[0]) + weights[1]
        slope = (logits.softmax(-1) - F.one_hot(labels[batch], num_classes)) / len(batch)
        gradients = (torch.matmul(seen.T, slope), slope.sum(1, keepdim=True))
        for weight, velocity, gradient in zip(weights, velocities, gradients, strict=True):
            velocity.mul_(MOMENTUM).add_(gradient)
            weight.sub_(rate * velocity)
    return weights[0], weights[1]


class LinearClassification(Evaluation):
    """Accuracy of softmax regression on frozen summaries: the evaluation `linear_classification`."""

    is_shared = True

    def __init__(self, train: LabelledSet, test: LabelledSet, schedule: ClassifierSchedule):
        self.train, self.test, self.schedule = train, test, schedule
        self.wanted = labels_in(train, test)

    def run(self, predict: Predict, bench: Bench) -> Result:
        """Accuracy of the classifier whose learning rate did best on held-out training images."""
        broken = Broken()
        train, test = (summaries(images, predict, bench, broken) for images in (self.train, self.test))
        labels = torch.tensor(self.train.labels)
        rows, chosen = {}, {}
        for name in predict:
            train_labels, wanted = labels[train[name].indices], self.wanted[test[name].indices]
            top1, learning_rate = self._measure(train[name].features, train_labels, test[name].features, wanted, bench.device)
            rows[name], chosen[name] = {"top1": top1}, learning_rate
        counts = {"train": len(self.train), "test": len(self.test), "classes": len(self.train.classes), "broken": len(broken.reasons)}
        return Result(
            metrics=[Metric("top1", "top-1")],
            rows=rows,
            counts=counts,
            fingerprint=f"{self.train.fingerprint()}-{self.test.fingerprint()}",
            floors={"top1": share_of_most_frequent(self.wanted)},
            floor="always the most frequent class",
            notes=(*broken.note(), "the floor is always the most frequent class"),
            details={"learning_rates": chosen},
        )

    def _measure(self, train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor, device: torch.device) -> tuple[float, float]:
        """(per cent right, learning rate)."""
        train, labels, test, wanted = (tensor.to(device) for tensor in (train, labels, test, wanted))
        held_out = torch.arange(len(train), device=device) % HELD_OUT == HELD_OUT - 1
        if len(self.schedule.learning_rates) == 1 or not bool(held_out.any()):
            held_out = torch.zeros_like(held_out)
        mean, std = train[~held_out].mean(0), train[~held_out].std(0).clamp_min(1e-6)
        train, test = (train - mean) / std, (test - mean) / std
        weight, bias = train_probes(train[~held_out], labels[~held_out], len(self.train.classes), self.schedule)
        best = 0
        if bool(held_out.any()):
            right = (torch.matmul(train[held_out], weight) + bias).argmax(-1) == labels[held_out]
            best = int(right.sum(1).argmax())
        reached = (test @ weight[best] + bias[best]).argmax(-1) == wanted
        return 100 * float(reached.double().mean()), self.schedule.learning_rates[best]
