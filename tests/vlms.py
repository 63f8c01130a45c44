"""What tests of vision-language models share: a tiny language model, pictures of one colour, and conversations about them."""

import json
import random
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from amradio.__main__ import main
from amradio.formats.model_folder import write_folder
from amradio.network import NetworkConfig
from amradio.students.vit_settings import VitSettings

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIZES = ((64, 64), (48, 64), (64, 32))
"""(width, height) px."""
QUESTION = "what colour is it"
VIT = VitSettings(dim=32, depth=2, num_heads=2, patch_size=16, max_image_size=64, num_registers=2)
NUM_SUMMARIES = 3


def write_student(folder: Path) -> Path:
    """A ViT with five tokens before its patches."""
    torch.manual_seed(0)
    config = NetworkConfig(student=VIT, num_summaries=NUM_SUMMARIES)
    write_folder(folder, config, config.build(), {"step": 1, "num_steps": 1, "data": "nothing"})
    return folder


def write_language_model(folder: Path) -> Path:
    """A Llama of two layers with random weights, and a byte-level BPE that knows the words of LLaVA's system prompt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from amradio.downstream.vlm.assembly import TEMPLATE

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator([TEMPLATE] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape, **ends)).save_pretrained(folder)
    return folder


def write_conversations(folder: Path, count: int = 48) -> Path:
    """`captions.json`, `questions.json` and their pictures, in LLaVA's layout; every eighth question has no picture."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    captions, questions = [], []
    for number in range(count):
        colour, size = draw.choice(list(COLOURS)), draw.choice(SIZES)
        name = f"{number}.png"
        Image.new("RGB", size, COLOURS[colour]).save(folder / name)
        asked = {"from": "human", "value": f"{QUESTION}\n<image>"}
        captions.append({"id": name, "image": name, "conversations": [asked, {"from": "gpt", "value": f"a {colour} picture"}]})
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": colour}]
        turns += [{"from": "human", "value": "is it red"}, {"from": "gpt", "value": "yes" if colour == "red" else "no"}]
        questions.append({"id": name, "image": name, "conversations": turns})
        if number % 8 == 0:
            turns = [{"from": "human", "value": "is there a picture"}, {"from": "gpt", "value": "no"}]
            questions.append({"id": f"{name}t", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


def words(student: Path, language_model: Path, data: Path) -> list[str]:
    """Words of a run of both stages."""
    captions, questions = (f"{{annotations: {data / name}, images: {data}}}" for name in ("captions.json", "questions.json"))
    return [
        f"model={student}",
        f"language_model={language_model}",
        "image_size=64",
        f"alignment={{data: {captions}, epochs: 1, batch_size: 8, learning_rate: 1e-2}}",
        f"instruction={{data: {questions}, epochs: 6, batch_size: 8, learning_rate: 1e-2}}",
        "engine={device: cpu, precision: float32, log_every: 6}",
        "num_workers=0",
    ]


class Parts(NamedTuple):
    """What a vision-language model is trained from."""

    student: Path
    language_model: Path
    data: Path

    def run(self, out: Path, *given: str) -> int:
        """`amradio vlm train`, with other words behind the usual ones; its exit code."""
        return main(["vlm", "train", *words(*self), f"out={out}", *given])
