"""The contrastive teacher: `CLIPModel` over pictures and their captions (arXiv 2103.00020), with its own tokenizer."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from amradio.data.scenes import CLASS_NAMES

from .budget import Budget
from .measure import encode, knn_of, likeness_iou
from .pictures import CLIP_MEAN, CLIP_STD, Pictures, normalised
from .views import crop, relight

BATCH, RATE, WEIGHT_DECAY = 192, 2e-3, 0.1
SCALE, RELIGHT = (0.7, 1.0), 0.5
TEMPLATES = ("a photo of a {} object", "a picture of a large {} object", "a picture of a small {} object")
START, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer(captions: list[tuple[str, ...]], length: int, vocabulary: int) -> CLIPTokenizer:
    """CLIP's own byte-pair tokenizer with merges learnt from `captions`; the same captions give the same tokenizer.

    (The trainer of `tokenizers` breaks ties in the order of a hash table: two runs gave two vocabularies, seen with 0.23.)
    """
    plain = CLIPTokenizer().backend_tokenizer
    counts = Counter(text for texts in captions for text in texts)
    words: Counter[str] = Counter()
    for text, number in counts.items():
        for word, _ in plain.pre_tokenizer.pre_tokenize_str(plain.normalizer.normalize_str(text)):
            words[word] += number
    letters = [*sorted(ByteLevel.alphabet()), *sorted(f"{letter}</w>" for letter in ByteLevel.alphabet())]
    merges = _merges({(*word[:-1], f"{word[-1]}</w>"): number for word, number in words.items()}, vocabulary)
    tokens = [START, END, *letters, *("".join(pair) for pair in merges)]
    learnt = CLIPTokenizer(vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges=merges)
    learnt.model_max_length = length
    return learnt


def _merges(words: dict[tuple[str, ...], int], limit: int) -> list[tuple[str, str]]:
    """Byte-pair encoding (arXiv 1508.07909): the most frequent neighbours become one token, ties in alphabetical order, `limit` times."""
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for parts, number in words.items():
            for pair in pairwise(parts):
                pairs[pair] += number
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_joined(parts, best): number for parts, number in words.items()}
    return merges


def _joined(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    found: list[str] = []
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)


def build(image_size: int, words: CLIPTokenizer, width: int = 128, depth: int = 4) -> CLIPModel:
    shared = {"hidden_act": "gelu", "projection_dim": 64}  # quick_gelu is ten times slower on a CPU
    vision = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": depth, "num_attention_heads": width // 32}
    text = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text |= {"vocab_size": len(words), "max_position_embeddings": words.model_max_length} | ends
    return CLIPModel(
        CLIPConfig(
            text_config=text | shared,
            vision_config=vision | shared | {"image_size": image_size, "patch_size": 8},
            projection_dim=64,
            attn_implementation="eager",  # the fused kernel's backward is eight times slower on a CPU in bf16
        )
    )


def processor(image_size: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    )


def summary(model: CLIPModel, device: str):
    """uint8 [B, 3, S, S] -> [B, D], the projected image embedding."""
    return lambda images: model.visual_projection(model.vision_model(normalised(images.to(device), CLIP_MEAN, CLIP_STD)).pooler_output)


@torch.inference_mode()
def zero_shot(model: CLIPModel, words: CLIPTokenizer, test: Pictures, device: str) -> float:
    """Share of `test` whose class is the nearest of CLASS_NAMES, each the mean of TEMPLATES."""
    prompts = []
    for template in TEMPLATES:
        tokens = words([template.format(name) for name in CLASS_NAMES], padding=True, return_tensors="pt").to(device)
        prompts.append(F.normalize(_text(model, tokens), dim=-1))
    classes = F.normalize(torch.stack(prompts).mean(0), dim=-1).cpu()
    images = F.normalize(encode(summary(model, device), test.images), dim=-1)
    return float(((images @ classes.T).argmax(1) == test.labels).float().mean())


def _text(model: CLIPModel, tokens: dict[str, Tensor]) -> Tensor:
    output = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return model.text_projection(output.pooler_output)


def contrast(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """The symmetric loss of CLIP; `same` bool [B, B] marks captions that are word for word alike, all of them right."""
    logits = scale.clamp(max=4.6).exp() * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    target = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(pool: Pictures, held_out: tuple[Pictures, Pictures] | None, budget: Budget, out: Path, device: str = "cpu") -> CLIPModel:
    """Trains on `pool`, says the accuracies on `held_out` (train, test) now and then, and saves each time."""
    side = pool.images.shape[-1]
    scenes_only = held_out is not None
    words = tokenizer(pool.captions, length=24 if scenes_only else 32, vocabulary=400 if scenes_only else 3500)
    model = build(side, words).to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0}], betas=(0.9, 0.98)
    )
    due, running = 0.0, 0.0
    while budget.progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = budget.rate(RATE)
        chosen = torch.randint(len(pool.images), (BATCH,))
        which = torch.randint(1 << 30, (BATCH,)).tolist()
        texts = [pool.captions[i][pick % len(pool.captions[i])] for i, pick in zip(chosen.tolist(), which, strict=True)]
        tokens = words(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        identity = torch.tensor([hash(text) for text in texts], device=device)
        views = relight(crop(pool.images[chosen].to(device), SCALE, side), RELIGHT)
        with torch.autocast(device, torch.bfloat16):
            seen = model.visual_projection(model.vision_model(normalised(views, CLIP_MEAN, CLIP_STD)).pooler_output)
            loss = contrast(seen, _text(model, tokens), identity[:, None] == identity[None], model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        budget.step += 1
        running = loss.item() if budget.step == 1 else 0.98 * running + 0.02 * loss.item()
        if budget.elapsed >= due or budget.progress >= 1:
            due = budget.elapsed + 2
            model.eval()
            score = f", zero-shot {zero_shot(model, words, held_out[1], device):.3f}" if held_out else ""
            print(f"clip step {budget.step} {budget.elapsed:.1f} min loss {running:.3f}{score}", flush=True)
            save(model, words, side, out)
            model.train()
    return model.eval()


def save(model: CLIPModel, words: CLIPTokenizer, image_size: int, out: Path) -> None:
    model.save_pretrained(out)
    processor(image_size).save_pretrained(out)
    words.save_pretrained(out)


def spatial(model: CLIPModel, device: str):
    """uint8 [B, 3, S, S] -> [B, h, w, D], the last layer's patches."""

    def encode(images: Tensor) -> Tensor:
        patches = model.vision_model(normalised(images.to(device), CLIP_MEAN, CLIP_STD)).last_hidden_state[:, 1:]
        return patches.unflatten(1, (images.shape[-2] // 8, -1))

    return encode


def scores(model: CLIPModel, words: CLIPTokenizer, held_out: tuple[Pictures, Pictures], device: str) -> dict[str, float]:
    knn, alike = knn_of(summary(model, device), *held_out), likeness_iou(spatial(model, device), held_out[1])
    return {"zero_shot": zero_shot(model, words, held_out[1], device), "knn_20": knn, "likeness_iou": alike}
