"""The self-distilled teacher: `Dinov2WithRegistersModel`, trained without labels.

DINO (arXiv 2104.14294) with what DINOv2 (arXiv 2304.07193) added: an averaged copy of the student sees two large crops, the
student must say the same from those and from small crops (cross-entropy over prototypes, balanced by Sinkhorn-Knopp) and
at masked patches (iBOT), and KoLeo keeps summaries apart. A thousand steps of a small batch do not suffice to find textures
that way (seen: 20-NN accuracy of 50 to 54 %, raw pixels 33 %; with what follows over 80 %), so the summary also foretells
statistics of the picture's structure tensor, an older kind of target that needs no label either (as in MaskFeat,
arXiv 2112.09133).
"""

import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitImageProcessor, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from .budget import Budget, half_cosine
from .measure import knn_of, likeness_iou
from .pictures import IMAGENET_MEAN, IMAGENET_STD, Pictures, normalised
from .statistics import texture_statistics
from .views import crop, relight, repaint

BATCH, RATE, WEIGHT_DECAY, MOMENTUM = 48, 2e-3, 0.04, 0.992
# Few prototypes, or Sinkhorn-Knopp gives each picture of a small batch its own and the backgrounds are learnt (seen: 38 %).
PROTOTYPES, TEACHER_HEAT, STUDENT_HEAT = 32, 0.06, 0.1
GLOBAL_SIDE, LOCAL_SIDE = 0.75, 0.5  # of the picture's side
LOCALS, LOCAL_SCALE, GLOBAL_SCALE = 4, (0.12, 0.4), (0.4, 0.9)
MASKED, PATCH_WEIGHT, KOLEO = 0.4, 0.5, 0.05
RELIGHT, GREY = 1.2, 0.1
STATISTICS = 2.0  # weight of the texture statistics


def build(image_size: int, width: int = 128, depth: int = 4) -> Dinov2WithRegistersModel:
    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=width // 32,
            mlp_ratio=4,
            image_size=image_size,
            patch_size=8,
            num_register_tokens=4,
            layerscale_value=1.0,
            attn_implementation="eager",  # the fused kernel's backward is eight times slower on a CPU in bf16
        )
    )


def processor(image_size: int) -> BitImageProcessor:
    return BitImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )


def summary(model: Dinov2WithRegistersModel, device: str):
    """uint8 [B, 3, S, S] -> [B, D], the class token."""
    return lambda images: model(normalised(images.to(device), IMAGENET_MEAN, IMAGENET_STD)).pooler_output


class Projector(nn.Module):
    """Summary or patch [.., D] -> prototype logits [.., K], cosines to unit prototypes."""

    def __init__(self, width: int, bottleneck: int = 128) -> None:
        super().__init__()
        # One layer: the summary itself then has to be what the prototypes group (seen: 52 % after 340 steps, 41 % with three).
        self.project = nn.Linear(width, bottleneck)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(PROTOTYPES, bottleneck), dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.project(tokens), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Branch(nn.Module):
    """A backbone with its two projectors: one for the summary, one for patches."""

    def __init__(self, backbone: Dinov2WithRegistersModel) -> None:
        super().__init__()
        width = backbone.config.hidden_size
        self.backbone, self.head, self.patch_head = backbone, Projector(width), Projector(width)
        self.statistics = nn.Linear(width, 8)

    def forward(self, images: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] and bool [B, tokens] -> class token [B, D], patch tokens [B, tokens, D]."""
        tokens = self.backbone(images, bool_masked_pos=masked).last_hidden_state
        return tokens[:, 0], tokens[:, 1 + self.backbone.config.num_register_tokens :]


@torch.no_grad()
def sinkhorn(logits: Tensor) -> Tensor:
    """[B, K] -> assignments that use all prototypes alike: rows sum to 1."""
    scores = logits.float() / TEACHER_HEAT
    shares = (scores - scores.max()).exp().clamp(min=1e-30)
    for _ in range(3):
        shares = shares / shares.sum(0, keepdim=True) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True) / shares.shape[0]
    return shares * shares.shape[0]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * F.log_softmax(logits.float() / STUDENT_HEAT, dim=-1)).sum(-1).mean()


def koleo(summaries: Tensor) -> Tensor:
    """Minus the mean log distance to the nearest neighbour in the batch, eq. in section 4 of DINOv2."""
    unit = F.normalize(summaries.float(), dim=1)
    near = (unit @ unit.T - 2 * torch.eye(len(unit), device=unit.device)).argmax(1)
    return -((unit - unit[near]).norm(dim=1) + 1e-6).log().mean()


def view(images: Tensor, scale: tuple[float, float], side: int, spread: float) -> Tensor:
    return normalised(relight(repaint(crop(images, scale, side, spread)), RELIGHT, GREY), IMAGENET_MEAN, IMAGENET_STD)


def block_mask(batch: int, tokens: int, device: torch.device) -> Tensor:
    """bool [B, tokens]: half of the pictures lose patches, up to twice MASKED of them."""
    share = 2 * MASKED * torch.rand(batch, 1, device=device) * (torch.rand(batch, 1, device=device) < 0.5)
    return torch.rand(batch, tokens, device=device) < share


def loss_of(student: Branch, teacher: Branch, images: Tensor, statistics: Tensor) -> Tensor:
    """The loss of one batch, uint8 [B, 3, S, S], whose texture statistics, standardized, are [B, 8]."""
    side, batch = images.shape[-1], len(images)
    large, small = round(side * GLOBAL_SIDE / 8) * 8, round(side * LOCAL_SIDE / 8) * 8
    both = torch.cat([view(images, GLOBAL_SCALE, large, 1.0) for _ in range(2)])
    local = torch.cat([view(images, LOCAL_SCALE, small, 0.6) for _ in range(LOCALS)])
    masked = block_mask(2 * batch, (large // 8) ** 2, images.device)
    with torch.no_grad():
        summaries, patches = teacher(both)
        targets = sinkhorn(teacher.head(summaries)).chunk(2)
        patch_targets = sinkhorn(teacher.patch_head(patches[masked]))
    seen, seen_patches = student(both, masked)
    local, _ = student(local)
    first, second = student.head(seen).chunk(2)
    total = cross_entropy(first, targets[1]) + cross_entropy(second, targets[0])
    for part in student.head(local).chunk(LOCALS):
        total = total + cross_entropy(part, targets[0]) + cross_entropy(part, targets[1])
    total = total / (2 + 2 * LOCALS)
    total = total + PATCH_WEIGHT * cross_entropy(student.patch_head(seen_patches[masked]), patch_targets)
    foretold = student.statistics(torch.cat((seen, local))).float()
    total = total + STATISTICS * F.smooth_l1_loss(foretold, statistics.repeat(2 + LOCALS, 1))
    return total + KOLEO * sum(koleo(part) for part in seen.chunk(2)) / 2


def train(pool: Pictures, held_out: tuple[Pictures, Pictures] | None, budget: Budget, out: Path, device: str = "cpu") -> nn.Module:
    """Trains on `pool`, says the 20-NN accuracy on `held_out` (train, test) now and then, and saves each time."""
    side = pool.images.shape[-1]
    student = Branch(build(side)).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0}], betas=(0.9, 0.98)
    )
    statistics = torch.cat([texture_statistics(batch.float() / 255) for batch in pool.images.split(500)])
    statistics = (statistics - statistics.mean(0)) / statistics.std(0)
    due, running = 0.0, 0.0
    while budget.progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = budget.rate(RATE)
        chosen = torch.randint(len(pool.images), (BATCH,))
        images, known = pool.images[chosen].to(device), statistics[chosen].to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(student, teacher, images, known)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        momentum = 1 - (1 - MOMENTUM) * half_cosine(budget.progress)
        with torch.no_grad():
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
        budget.step += 1
        running = loss.item() if budget.step == 1 else 0.98 * running + 0.02 * loss.item()
        if not math.isfinite(running):
            raise FloatingPointError(f"dino: the loss is {running} at step {budget.step}")
        if budget.elapsed >= due or budget.progress >= 1:
            due = budget.elapsed + 1.5
            knn = f", 20-NN {knn_of(summary(teacher.backbone, device), *held_out):.3f}" if held_out else ""
            print(f"dino step {budget.step} {budget.elapsed:.1f} min loss {running:.3f}{knn}", flush=True)
            teacher.backbone.save_pretrained(out)
            processor(side).save_pretrained(out)
    return teacher.backbone


def spatial(model: Dinov2WithRegistersModel, device: str):
    """uint8 [B, 3, S, S] -> [B, h, w, D], the last layer's patches."""

    def encode(images: Tensor) -> Tensor:
        tokens = model(normalised(images.to(device), IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state
        return tokens[:, 1 + model.config.num_register_tokens :].unflatten(1, (images.shape[-2] // 8, -1))

    return encode


def scores(model: Dinov2WithRegistersModel, held_out: tuple[Pictures, Pictures], device: str) -> dict[str, float]:
    return {"knn_20": knn_of(summary(model, device), *held_out), "likeness_iou": likeness_iou(spatial(model, device), held_out[1])}
