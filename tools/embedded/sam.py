"""The prompted teacher: `SamModel`, masks from one click or a box (arXiv 2304.02643)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamConfig, SamImageProcessor, SamModel

from .budget import Budget
from .measure import knn_of, likeness_iou, middles, points
from .pictures import IMAGENET_MEAN, IMAGENET_STD, Pictures, normalised
from .views import relight

BATCH, PROMPTS, RATE, WEIGHT_DECAY = 32, 4, 1.5e-3, 0.05
SMALLEST = 24  # px; smaller objects are not asked for in training
JUDGED = 64  # px; the smallest object that is judged
RELIGHT, FOCAL = 0.5, 20


def build(image_size: int, width: int = 128, depth: int = 4, prompt_width: int = 64) -> SamModel:
    """A small SamModel, its weights drawn so that it can be trained from scratch.

    transformers leaves SAM's encoder at a range of 1e-10, its decoder at 0.02, and scales the random frequencies of positions
    by half its width: right for weights that will be loaded, hopeless to start from. The original starts from torch's own
    ranges, and frequencies of std 1.
    """
    shared = {"image_size": image_size, "patch_size": 8}
    vision = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 32, "mlp_ratio": 3.0}
    vision |= {"window_size": 4, "global_attn_indexes": [1, 3], "initializer_range": 0.02}
    vision |= {"output_channels": prompt_width, "num_pos_feats": prompt_width // 2}
    decoder = {"hidden_size": prompt_width, "mlp_dim": 4 * prompt_width, "num_attention_heads": 4, "iou_head_hidden_dim": prompt_width}
    config = SamConfig(
        vision_config=vision | shared,
        prompt_encoder_config={"hidden_size": prompt_width} | shared,
        mask_decoder_config=decoder,
        attn_implementation="eager",  # the fused kernel's backward is eight times slower on a CPU in bf16
    )
    model = SamModel(config)
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            part.reset_parameters()
    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.normal_()
        model.prompt_encoder.shared_embedding.positional_embedding = model.shared_image_embedding.positional_embedding
        nn.init.trunc_normal_(model.vision_encoder.pos_embed, std=0.02)
        for table in model.prompt_encoder.parameters():
            if table.ndim == 2 and table is not model.shared_image_embedding.positional_embedding:
                table.normal_()
    return model


def processor(image_size: int) -> SamImageProcessor:
    side = {"height": image_size, "width": image_size}
    quarter = {"longest_edge": image_size // 2}
    return SamImageProcessor(
        size={"longest_edge": image_size},
        pad_size=side,
        mask_size=quarter,
        mask_pad_size={"height": image_size // 2, "width": image_size // 2},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )


def embed(model: SamModel, images: Tensor) -> Tensor:
    """uint8 or float in [0, 1] [B, 3, S, S] -> image embeddings [B, C, S / 8, S / 8]."""
    return model.vision_encoder(normalised(images, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state


def summary(model: SamModel, device: str):
    """uint8 [B, 3, S, S] -> [B, C]: SAM has no summary, so the mean of its embeddings stands in."""
    return lambda images: embed(model, images.to(device)).mean((2, 3))


def spatial(model: SamModel, device: str):
    """uint8 [B, 3, S, S] -> [B, h, w, C], what the layers say before the neck."""

    def encode(images: Tensor) -> Tensor:
        pixels = normalised(images.to(device), IMAGENET_MEAN, IMAGENET_STD)
        return model.vision_encoder(pixels, output_hidden_states=True).hidden_states[-1]

    return encode


def sample(pool: Pictures, chosen: list[int]) -> Tensor:
    """PROMPTS object masks of each chosen picture (with repeats): bool [B, PROMPTS, S, S]."""
    picked = []
    for index in chosen:
        masks = pool.masks[index]
        large = (masks.sum((1, 2)) >= SMALLEST).nonzero()[:, 0]
        among = large if len(large) else torch.arange(len(masks))
        picked.append(masks[among[torch.randint(len(among), (PROMPTS,))]])
    return torch.stack(picked)


def clicks(masks: Tensor) -> Tensor:
    """One pixel inside each mask, at random, the inner ones likelier: bool [B, P, S, S] -> x, y [B, P, 1, 2] in px."""
    flat = masks.flatten(0, 1).float()
    inner = F.avg_pool2d(flat[:, None], 5, 1, 2)[:, 0]
    weight = (flat * inner**2 + 1e-9).flatten(1)
    return points(torch.multinomial(weight, 1), masks)


def boxes(masks: Tensor, jitter: float) -> Tensor:
    """x0, y0, x1, y1 [B, P, 4] in px round each mask; each side off by up to `jitter` of the box's own."""
    side = masks.shape[-1]
    line = torch.arange(side, device=masks.device)
    corners = []
    for axis in (-2, -1):
        hit = masks.any(axis)
        corners.append((torch.where(hit, line, side).amin(-1).float(), torch.where(hit, line + 1, 0).amax(-1).float()))
    (x0, x1), (y0, y1) = corners
    box = torch.stack((x0, y0, x1, y1), -1)
    extent = torch.stack((x1 - x0, y1 - y0, x1 - x0, y1 - y0), -1)
    return (box + (torch.rand_like(box) * 2 - 1) * jitter * extent).clamp(0, side)


def predict(model: SamModel, embeddings: Tensor, prompt: dict[str, Tensor], *, several: bool) -> tuple[Tensor, Tensor]:
    """Mask logits [B, P, M, S, S] at the picture's size and predicted IoU [B, P, M]; M is 3 if `several`, else 1."""
    output = model(image_embeddings=embeddings, multimask_output=several, **prompt)
    side = model.config.vision_config.image_size
    logits = output.pred_masks
    large = F.interpolate(logits.flatten(0, 1), (side, side), mode="bilinear", align_corners=False)
    return large.view(*logits.shape[:3], side, side), output.iou_scores


def iou(logits: Tensor, masks: Tensor) -> Tensor:
    """[B, P, M] of logits [B, P, M, S, S] against bool masks [B, P, S, S]."""
    found, wanted = logits > 0, masks[:, :, None]
    return (found & wanted).sum((-2, -1)) / (found | wanted).sum((-2, -1)).clamp(min=1)


def loss_of(logits: Tensor, scores: Tensor, masks: Tensor) -> Tensor:
    """Focal and dice, mostly of the best of the masks, and the squared error of all predicted IoU, as in SAM, at the decoder's size.

    logits [B, P, M, h, w], predicted IoU [B, P, M], bool masks [B, P, S, S].
    """
    logits, side = logits.float(), logits.shape[-1]
    wanted = F.adaptive_avg_pool2d(masks.flatten(0, 1).float(), side).view(*masks.shape[:2], 1, side, side).expand_as(logits)
    shares = logits.sigmoid()
    plain = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focal = ((shares - wanted) ** 2 * plain).mean((-2, -1))
    dice = 1 - (2 * (shares * wanted).sum((-2, -1)) + 1) / ((shares + wanted).sum((-2, -1)) + 1)
    truth = iou(logits.detach(), masks=wanted[:, :, 0] > 0.5)
    each = FOCAL * focal + dice
    # A little of the mean keeps all masks usable, so that a wrong choice among them costs less.
    return 0.8 * each.amin(-1).mean() + 0.2 * each.mean() + F.mse_loss(scores.float(), truth)


@torch.inference_mode()
def one_click(model: SamModel, test: Pictures, device: str, prompt: str = "click") -> float:
    """Mean IoU over the objects of `test` that show at least JUDGED px; of three masks the one that SAM itself prefers."""
    found = []
    for index in range(len(test.images)):
        masks = test.masks[index]
        masks = masks[masks.sum((1, 2)) >= JUDGED][None].to(device)
        if not masks.shape[1]:
            continue
        embeddings = embed(model, test.images[index : index + 1].to(device))
        asked = {"input_points": middles(masks)} if prompt == "click" else {"input_boxes": boxes(masks, 0)}
        logits, scores = predict(model, embeddings, asked, several=prompt == "click")
        found.append(iou(logits, masks).gather(2, scores.argmax(2, keepdim=True)).flatten().cpu())
    return float(torch.cat(found).mean())


def train(pool: Pictures, held_out: tuple[Pictures, Pictures] | None, budget: Budget, out: Path, device: str = "cpu") -> SamModel:
    """Trains on `pool`, says the one-click IoU on `held_out[1]` now and then, and saves each time."""
    side = pool.images.shape[-1]
    model = build(side).to(device)
    fixed = model.shared_image_embedding.positional_embedding
    decayed = [p for p in model.parameters() if p.ndim > 1 and p is not fixed]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0}], betas=(0.9, 0.98)
    )
    due, running = 0.0, 0.0
    while budget.progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = budget.rate(RATE)
        chosen = torch.randint(len(pool.images), (BATCH,)).tolist()
        images, masks = pool.images[chosen].to(device), sample(pool, chosen).to(device)
        axes = [axis for axis in (-2, -1) if torch.rand(()) < 0.5]
        views, masks = relight((images.float() / 255).flip(axes), RELIGHT), masks.flip(axes)
        with torch.autocast(device, torch.bfloat16):
            embeddings = embed(model, views)
            several = budget.step % 4 < 2
            prompt = {"input_boxes": boxes(masks, 0.1)} if budget.step % 4 == 3 else {"input_points": clicks(masks)}
            output = model(image_embeddings=embeddings, multimask_output=several, **prompt)
            loss = loss_of(output.pred_masks, output.iou_scores, masks)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        budget.step += 1
        running = loss.item() if budget.step == 1 else 0.98 * running + 0.02 * loss.item()
        if budget.elapsed >= due or budget.progress >= 1:
            due = budget.elapsed + 2
            score = f", one-click {one_click(model, held_out[1], device):.3f}" if held_out else ""
            print(f"sam step {budget.step} {budget.elapsed:.1f} min loss {running:.3f}{score}", flush=True)
            save(model, side, out)
    return model


def save(model: SamModel, image_size: int, out: Path) -> None:
    model.save_pretrained(out)
    processor(image_size).save_pretrained(out)


def scores(model: SamModel, held_out: tuple[Pictures, Pictures], device: str) -> dict[str, float]:
    click, box = (one_click(model, held_out[1], device, prompt) for prompt in ("click", "box"))
    knn, alike = knn_of(summary(model, device), *held_out), likeness_iou(spatial(model, device), held_out[1])
    return {"one_click_iou": click, "box_iou": box, "knn_20": knn, "likeness_iou": alike}
