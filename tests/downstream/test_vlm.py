"""Vision-language models: the tower in transformers' LLaVA, its folder, and LLaVA's two stages on pictures of one colour."""

import importlib.util
import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import amradio
import vlms
from amradio.__main__ import main
from amradio.downstream.vlm.assembly import Vlm, assemble
from amradio.downstream.vlm.files import load_vlm, write_vlm
from amradio.downstream.vlm.generation import answer
from amradio.downstream.vlm.tower import AmradioVision, tower_config
from amradio.errors import UserError
from amradio.model import Model
from amradio.network import NetworkConfig
from amradio.students.eradio_settings import EradioSettings
from amradio.students.timm_settings import TimmSettings
from model_folders import config_of
from vlms import Parts

for name in ("trl", "peft", "datasets"):
    pytest.importorskip(name)

ERADIO = EradioSettings(size="xxxtiny", dim=8, stem_dim=8, depths=(1, 1, 1, 1), num_heads=(2, 2), window_size=3)


def random_images(*sizes: tuple[int, int]) -> list[Image.Image]:
    """sizes: (width, height) px."""
    draw = torch.Generator().manual_seed(0)
    pixels = [torch.randint(256, (height, width, 3), generator=draw, dtype=torch.uint8) for width, height in sizes]
    return [Image.fromarray(image.numpy()) for image in pixels]


def inputs_of(vlm: Vlm, images: list[Image.Image]) -> dict:
    content = [{"type": "image"}, {"type": "text", "text": vlms.QUESTION}]
    text = vlm.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    options = {"padding": True, "padding_side": "left", "add_special_tokens": False, "return_tensors": "pt"}
    return dict(vlm.processor(images=images, text=[text] * len(images), **options))


def logits_of(vlm: Vlm, images: list[Image.Image]) -> torch.Tensor:
    with torch.no_grad():
        return vlm.network(**inputs_of(vlm, images)).logits


def num_image_tokens(vlm: Vlm, images: list[Image.Image]) -> list[int]:
    return (inputs_of(vlm, images)["input_ids"] == vlm.processor.image_token_id).sum(1).tolist()


def test_image_tokens_are_the_cells_of_the_map_and_no_summaries(vlm: Vlm, parts: Parts) -> None:
    student = amradio.load(parts.student)
    assert student.num_summaries == 3
    images = random_images((48, 64), (64, 32))
    assert num_image_tokens(vlm, images) == [12, 8]
    inputs = inputs_of(vlm, images)
    tower = vlm.network.model.vision_tower
    cells = tower(inputs["pixel_values"], image_sizes=inputs["image_sizes"]).last_hidden_state
    alone = [student(image[None, :, :h, :w]) for image, (h, w) in zip(inputs["pixel_values"], ((64, 48), (32, 64)), strict=True)]
    assert torch.equal(cells, torch.cat([features.spatial.flatten(1, 2) for features in alone], 1))


def test_the_tower_gets_images_that_nobody_has_normalised(vlm: Vlm) -> None:
    pixels = inputs_of(vlm, [Image.new("RGB", (64, 64), (255, 0, 51))])["pixel_values"]
    assert pixels[0, :, 5, 5].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_a_batch_of_mixed_sizes_is_each_image_alone(vlm: Vlm) -> None:
    images = random_images((48, 64), (64, 32), (64, 64))
    together = logits_of(vlm, images)
    for number, image in enumerate(images):
        alone = logits_of(vlm, [image])[0]
        assert torch.allclose(together[number, -len(alone) :], alone, atol=1e-5)


def test_a_reloaded_folder_gives_the_same_logits(vlm: Vlm, tmp_path: Path) -> None:
    write_vlm(vlm, tmp_path / "folder", "# A model")
    loaded = load_vlm(tmp_path / "folder")
    images = random_images((48, 64), (64, 32))
    assert torch.equal(logits_of(loaded, images), logits_of(vlm, images))
    assert loaded.student is not None
    assert torch.equal(loaded.student.network.student.mean, vlm.network.model.vision_tower.model.network.student.mean)
    modes = {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "folder").iterdir()}
    assert len(modes) == 1, "the library makes weights readable for their owner alone"


def test_the_tower_has_no_training_mode(vlm: Vlm) -> None:
    images = random_images((48, 64))
    before = logits_of(vlm, images)
    vlm.network.train()
    assert vlm.network.model.language_model.training
    assert not any(module.training for module in vlm.network.model.vision_tower.modules())
    assert torch.equal(logits_of(vlm, images), before)


def test_the_chat_marks_what_the_assistant_says(vlm: Vlm) -> None:
    turns = [("user", "what"), ("assistant", "red"), ("user", "is it red"), ("assistant", "yes")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    encoded = vlm.processor.apply_chat_template([messages], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    tokens = torch.tensor(encoded["input_ids"])[torch.tensor(encoded["assistant_masks"]).bool()]
    assert vlm.processor.tokenizer.decode(tokens) == " red</s> yes</s>"
    whole = vlm.processor.tokenizer.decode(encoded["input_ids"][0])
    assert whole.startswith("<s>A chat between a curious user")
    assert whole.endswith("USER: what ASSISTANT: red</s>USER: is it red ASSISTANT: yes</s>")


@pytest.mark.parametrize("settings", [ERADIO, TimmSettings(model="test_efficientnet")], ids=["eradio", "timm"])
def test_students_of_one_size_see_squares_with_margins(settings, parts: Parts, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(student=settings, num_summaries=1)
    student = Model(config, config.build())
    vlm = assemble(student, None, 64, str(parts.language_model))
    write_vlm(vlm, tmp_path / "folder", "# A model")
    vlm = load_vlm(tmp_path / "folder")
    images = random_images((48, 64), (64, 20))
    pixels = inputs_of(vlm, images)["pixel_values"]
    assert pixels.shape == (2, 3, 64, 64)
    assert torch.allclose(pixels[0, :, 5, 1], student.network.student.mean.flatten(), atol=1 / 255)
    spatial = student(pixels).spatial
    assert spatial is not None
    assert num_image_tokens(vlm, images) == [spatial[0, :, :, 0].numel()] * 2
    assert torch.allclose(logits_of(vlm, images)[1:], logits_of(vlm, images[1:]), atol=1e-5)


def test_the_map_of_a_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = config_of(vlms.VIT)
    student = Model(config, config.build())
    tower = AmradioVision(tower_config(student, "dino", 64))
    tower.model.load_state_dict(student.state_dict())
    assert tower.config.hidden_size == 11
    images = torch.rand(2, 3, 32, 48)
    assert torch.equal(tower(images).last_hidden_state, student(images, heads="dino")["dino"].spatial.flatten(1, 2))
    with pytest.raises(UserError, match="head: there is no 'siglip'; there is: clip, dino, sam"):
        tower_config(student, "siglip", 64)


@pytest.fixture(scope="session")
def trained(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, the second in full."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert parts.run(out) == 0
    return out


@pytest.mark.slow
def test_it_learns_to_name_colours(trained: Path) -> None:
    vlm = load_vlm(trained)
    images = [Image.new("RGB", size, colour) for colour in vlms.COLOURS.values() for size in ((64, 64), (40, 64))]
    assert answer(vlm, [vlms.QUESTION] * 6, images).texts == [name for name in vlms.COLOURS for _ in range(2)]
    assert len(set(answer(vlm, [vlms.QUESTION] * 2, None).texts)) == 1, "without an image there is one answer"


@pytest.mark.slow
def test_lines_of_the_documentation_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "vlm.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "vlm").symlink_to(trained)
    Image.new("RGB", (64, 64), vlms.COLOURS["blue"]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(block, "vlm.md", "exec"), found)
    assert found["answer"].strip() == "blue"


@pytest.mark.slow
def test_the_tower_keeps_its_bits_through_both_stages(trained: Path, parts: Parts) -> None:
    after = load_vlm(trained).network.model.vision_tower.model.network.state_dict()
    student = load_file(parts.student / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in student.items())
    assert not (trained / "instruction").exists()
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 46, "the last step is logged"
    assert rows[-1]["instruction/loss"] < 0.3


@pytest.mark.slow
def test_the_first_stage_trains_the_projector_alone(parts: Parts, tmp_path: Path) -> None:
    assert parts.run(tmp_path / "run", "instruction=null", "alignment.epochs=0.3") == 0
    after = load_vlm(tmp_path / "run").network.model.state_dict()
    language = load_file(parts.language_model / "model.safetensors")
    kept = {name.removeprefix("model."): tensor for name, tensor in language.items() if name.startswith("model.") and "embed" not in name}
    assert kept
    assert all(torch.equal(after[f"language_model.{name}"], tensor) for name, tensor in kept.items())
    torch.manual_seed(0)
    before = assemble(amradio.load(parts.student), None, 64, str(parts.language_model)).network.model.multi_modal_projector
    assert not torch.equal(after["multi_modal_projector.linear_1.weight"], before.linear_1.weight)


@pytest.mark.slow
def test_low_rank_additions_are_merged(parts: Parts, tmp_path: Path) -> None:
    words = ("alignment=null", "instruction.language_model={type: lora, rank: 2, alpha: 4}", "instruction.epochs=0.3")
    assert parts.run(tmp_path / "run", *words) == 0
    vlm = load_vlm(tmp_path / "run")
    assert not any("lora" in name for name, _ in vlm.network.named_parameters())
    language = load_file(parts.language_model / "model.safetensors")
    added = vlm.network.model.language_model.layers[0].mlp.up_proj.weight - language["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(added.detach(), rtol=1e-3) == 2
    norm = vlm.network.model.language_model.layers[0].input_layernorm.weight
    assert torch.equal(norm, language["model.layers.0.input_layernorm.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["both stages", "lora"])
def test_a_stopped_run_resumes_as_if_it_had_not_been(stage: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from amradio.downstream.vlm.trainer import Reporter

    words = ("alignment.epochs=0.2", "instruction.epochs=0.3", "engine.log_every=1")
    if stage == "lora":
        words = ("alignment=null", "instruction.language_model={type: lora, rank: 2}", *words[1:])
    assert parts.run(tmp_path / "whole", *words) == 0
    end = Reporter.on_step_end

    def stopping(self, arguments, state, control, **rest) -> None:
        if self.stage.name == "instruction" and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        end(self, arguments, state, control, **rest)

    monkeypatch.setattr(Reporter, "on_step_end", stopping)
    assert parts.run(tmp_path / "run", *words) == 143
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model").exists()
    assert [file.parent.name for file in (tmp_path / "run").glob("instruction/*/sha256.json")] == ["checkpoint-1"]
    assert parts.run(tmp_path / "run", *words) == 0
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 3 + (stage != "lora")))
    assert parts.run(tmp_path / "run", *words) == 0, "a finished run is left as it is"


def test_missing_libraries_are_named(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in ("trl", "peft") else find(name, *rest))
    assert parts.run(tmp_path / "run") == 2
    assert "are trained with trl, peft, not installed here: pip install 'amradio[vlm]'" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    from amradio.downstream.vlm.settings import AlignmentSettings, ConversationsSettings
    from amradio.downstream.vlm.trainer import Reporter, Stage
    from amradio.engine.distributed import Processes
    from amradio.engine.log import Log
    from amradio.interruption import Stop

    settings = AlignmentSettings(data=ConversationsSettings(annotations="a", images="b"))
    reporter = Reporter(Stage("alignment", settings, [], 0, 9), Log(), Stop(), Processes(torch.device("cpu")))
    state = SimpleNamespace(global_step=3)
    reporter.on_log(None, state, None, logs={"loss": 1.0, "grad_norm": 2.0})
    with pytest.raises(UserError, match="alignment: grad_norm at step 3 is no number; lower learning_rate"):
        reporter.on_log(None, state, None, logs={"loss": 0.0, "grad_norm": float("nan")})


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("image_size=70",), ["error: image_size: 70 px is no side of an image that the student takes; take 64"]),
        (("head=clip",), ["error: head: there is no 'clip'; this model has no head with a map; leave it out"]),
        (("language_model=nowhere/at-all",), ["error: language_model 'nowhere/at-all'"]),
        (("alignment.batch_size=7", "engine.accumulate=2"), ["error: alignment.batch_size: 7 is not shared out evenly over 2 pieces"]),
        (("alignment=null", "instruction=null"), ["error: alignment: there is no stage to train"]),
        (("alignment.data.images=nowhere", "instruction.learning_rat=1"), ["error: instruction.learning_rat: there is no such key"]),
        (
            ("alignment.data.images=nowhere", "image_size=70"),
            ["error: alignment.data: nowhere: there is no such folder", "image_size: 70 px"],
        ),
        (("engine.device=cuda:1",), ["error: engine.device"]),
    ],
)
def test_bad_recipes(words: tuple[str, ...], messages: list[str], parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert parts.run(tmp_path / "run", *words) == 2
    printed = capsys.readouterr().err
    assert all(message in printed for message in messages), printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"id": 7, "image": "0.png", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "an image and 0 times",
        ),
        ({"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "b"}]}, "no image and 1 times <image>"),
        ({"conversations": [{"from": "gpt", "value": "b"}]}, "a conversation begins with a turn of human and has one of gpt"),
        ({"conversations": [{"from": "bot", "value": "b"}]}, r"expected from \(human, gpt, system\) and value, a text"),
        ({"image": "../0.png", "conversations": []}, "expected the path of a file below"),
        ({"id": 3}, r"sample 0 \(id 3\): it lacks 'conversations'"),
        (5, "sample 0: 5; expected an object"),
    ],
)
def test_wrong_conversations_are_named(row: object, message: str, parts: Parts, tmp_path: Path) -> None:
    from amradio.downstream.vlm.conversations import read_conversations
    from amradio.downstream.vlm.settings import ConversationsSettings

    file = tmp_path / "file.json"
    file.write_text(json.dumps([row]))
    with pytest.raises(UserError, match=message):
        read_conversations(ConversationsSettings(annotations=str(file), images=str(parts.data)))


@pytest.mark.parametrize(("num_summaries", "num_registers"), [(1, 0), (3, 2)])
def test_a_folder_for_transformers_alone(num_summaries: int, num_registers: int, parts: Parts, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = vlms.VIT.model_copy(update={"num_registers": num_registers})
    config = NetworkConfig(student=settings, num_summaries=num_summaries)
    vlm = assemble(Model(config, config.build()), None, 64, str(parts.language_model))
    write_vlm(vlm, tmp_path / "vlm", "# A model")
    assert main(["vlm", "export", str(tmp_path / "vlm"), "--out", str(tmp_path / "plain")]) == 0
    exported = load_vlm(tmp_path / "plain")
    assert type(exported.network.model.vision_tower).__module__.startswith("transformers.")
    assert "amradio" not in (tmp_path / "plain" / "config.json").read_text().replace('"amradio": {', "")
    images = random_images((64, 64), (64, 64))
    num_prefix = num_summaries + num_registers
    if num_prefix == 1:
        assert torch.allclose(logits_of(exported, images), logits_of(vlm, images), atol=1e-4)
    else:
        assert num_image_tokens(exported, images) == [16 + num_prefix] * 2
        pixels = inputs_of(exported, images)["pixel_values"]
        tokens = exported.network.model.vision_tower(pixels).last_hidden_state
        student = vlm.student
        assert student is not None
        assert torch.allclose(tokens[:, num_prefix:], student(pixels).spatial.flatten(1, 2), atol=1e-4)
    assert main(["vlm", "export", str(tmp_path / "vlm"), "--out", str(tmp_path / "plain")]) == 2


def test_what_cannot_be_exported_says_why(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = NetworkConfig(student=ERADIO, num_summaries=1)
    write_vlm(assemble(Model(config, config.build()), None, 64, str(parts.language_model)), tmp_path / "vlm", "# A model")
    assert main(["vlm", "export", str(tmp_path / "vlm"), f"out={tmp_path / 'plain'}"]) == 2
    assert "transformers' RadioModel is a ViT, and this student is of type 'eradio'" in capsys.readouterr().err
    assert main(["vlm", "export", str(tmp_path / "vlm")]) == 2
    assert "write one model and one new folder" in capsys.readouterr().err
    assert not (tmp_path / "plain").exists()
