"""Nothing in a teacher's or model's folder runs or asks to run code, whichever library reads it."""

import ast
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import amradio
import tiny
from amradio.config import validate
from amradio.errors import UserError
from amradio.libraries import NO_CODE, first_line, wants_code
from amradio.teachers import TEACHERS, Teacher
from amradio.teachers.loading import quiet
from amradio.teachers.text_encoder import TextEncoder, load_tokenizer

SOURCE = Path(__file__).parents[2] / "src" / "amradio"
MODULE = """
from pathlib import Path
Path({ran!r}).touch()
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizer
class Config(CLIPConfig): model_type = "stranger"
class Model(CLIPModel): config_class = Config
class Processor(CLIPImageProcessor): pass
class Tokenizer(PreTrainedTokenizer): pass
"""


def built(kind: str, folder: Path) -> Teacher:
    settings = next(each for each in TEACHERS if each.model_fields["type"].default == kind)
    return validate(settings, {"model": str(folder)}).build()  # type: ignore[arg-type]


def change(file: Path, **keys: Any) -> None:
    old = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(old | keys))


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that code of a folder would make; nobody is asked, and modules are copied below the test's folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def asked(*words: object) -> str:
        raise AssertionError(f"somebody was asked on the terminal: {words}")

    monkeypatch.setattr("builtins.input", asked)
    return tmp_path / "ran"


def plant(folder: Path, ran: Path) -> None:
    """Puts a module and every key that names it into a folder."""
    (folder / "stranger.py").write_text(MODULE.format(ran=str(ran)))
    automatic = {"AutoConfig": "stranger.Config", "AutoModel": "stranger.Model", "AutoImageProcessor": "stranger.Processor"}
    tokenizers = {"AutoTokenizer": ["stranger.Tokenizer", None]}
    change(folder / "config.json", auto_map=automatic, trust_remote_code=False)
    change(folder / "preprocessor_config.json", auto_map=automatic)
    change(folder / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=tokenizers)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [(kind, n) for kind, builds in tiny.BUILDERS.items() for n in range(len(builds))])
def test_a_planted_module_is_not_run(kind: str, number: int, tmp_path: Path, ran: Path):
    folder = tiny.BUILDERS[kind][number](tmp_path / "folder")
    plant(folder, ran)
    teacher = built(kind, folder)
    if teacher.has_text:
        with pytest.raises(UserError) as caught:  # the tiny models have no tokenizer, or another vocabulary
            TextEncoder(teacher)(["a dog"])
        assert "trust_remote_code" not in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["x", "roberta-base"])
def test_a_tokenizer_of_open_clip_that_asks_for_trust(name: str, tmp_path: Path, ran: Path):
    folder = tiny.tiny_open_clip(tmp_path / "folder")
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": name, "tokenizer_kwargs": {"trust_remote_code": True}}
    file.write_text(json.dumps(config))
    plant(folder, ran)
    with pytest.raises(
        UserError, match=r"open_clip_config\.json: model_cfg\.text_cfg\.tokenizer_kwargs\.trust_remote_code: it asks to run"
    ):
        built("open_clip", folder)
    del config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]  # left out, the library would ask on the terminal
    file.write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        TextEncoder(built("open_clip", folder))(["a dog"])
    assert NO_CODE in str(caught.value)
    assert not ran.exists()


def test_a_text_tower_of_transformers_in_a_folder_of_open_clip(tmp_path: Path, ran: Path):
    folder = tiny.tiny_open_clip(tmp_path / "folder").absolute()
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["custom_text"] = True
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_proj_type": "mlp"}
    file.write_text(json.dumps(config))
    plant(folder, ran)
    change(folder / "config.json", model_type="stranger")
    with pytest.raises(UserError) as caught:
        built("open_clip", folder)
    assert NO_CODE in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "vision_config"])
@pytest.mark.parametrize("kind", ["clip", "dinov2", "sam", "siglip", "radio"])
def test_kernels_of_the_hub_are_not_fetched(kind: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched: list[object] = []
    for name in ("load_and_register_attn_kernel", "get_kernel", "lazy_load_kernel"):
        monkeypatch.setattr(f"transformers.integrations.hub_kernels.{name}", lambda *words, **_: fetched.append(words))
    folder = tiny.BUILDERS[kind][0](tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    inner = {**config.get(key, {}), "attn_implementation": "stranger/kernel"} if key == "vision_config" else "stranger/kernel"
    change(folder / "config.json", **{key: inner})
    with pytest.raises(UserError, match=f"{key}.*it asks to run code"):
        built(kind, folder)
    assert not fetched


def test_what_no_file_asks_for_is_chosen_as_before(tmp_path: Path):
    folder = tiny.tiny_clip(tmp_path)
    change(folder / "config.json", attn_implementation="eager")
    with quiet():
        plain = transformers.CLIPModel.from_pretrained(tiny.tiny_clip(tmp_path / "plain"))
    assert built("clip", folder).model.config._attn_implementation == plain.config._attn_implementation == "sdpa"


def test_quantised_weights_and_adapters_are_refused_by_name(tmp_path: Path):
    folder = tiny.tiny_clip(tmp_path / "a")
    change(folder / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(UserError, match=r"quantization_config: its weights are quantised"):
        built("clip", folder)
    folder = tiny.tiny_clip(tmp_path / "b")
    change(folder / "adapter_config.json", base_model_name_or_path="stranger/base")
    with pytest.raises(UserError, match="an adapter to another model"):
        built("clip", folder)


@pytest.mark.parametrize("name", ["local-dir:/", "hf-hub:stranger/tower", "../tower"])
def test_a_tower_of_timm_comes_from_nowhere_else(name: str, tmp_path: Path):
    folder = tiny.tiny_open_clip(tmp_path, timm_model_name="test_vit", image_size=160)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = name
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"timm_model_name: found .*no place"):
        built("open_clip", folder)


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "file"), [("clip", "pytorch_model.bin"), ("open_clip", "open_clip_pytorch_model.bin")])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_refused_pickle_gives_no_advice_to_trust_it(kind: str, file: str, legacy: bool, tmp_path: Path, ran: Path):
    folder = tiny.BUILDERS[kind][0](tmp_path / "folder")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.save({"a": Evil(ran)}, folder / file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as caught:
        built(kind, folder)
    message = str(caught.value)
    assert "nothing was run" in message
    assert not any(words in message for words in ("weights_only", "re-running", "trusted source", "trust_remote_code"))
    assert not ran.exists()


@pytest.mark.parametrize("raw", [False, True])
def test_a_refused_checkpoint_gives_no_advice_either(raw: bool, tmp_path: Path, ran: Path):
    path = tmp_path / "model.pth.tar"
    if raw:
        path.write_bytes(pickle.dumps({"args": Evil(ran)}, protocol=2))
    else:
        torch.save({"args": Evil(ran)}, path)
    with pytest.raises(UserError) as caught:
        amradio.load(path)
    assert "weights_only" not in str(caught.value)
    assert not ran.exists()


def test_a_tokenizer_beside_a_clip(tmp_path: Path, ran: Path):
    folder = tiny.tiny_clip(tmp_path / "folder")
    plant(folder, ran)
    with pytest.raises(UserError, match="there is no tokenizer"):  # the library's own class of this model is tried, and has no words
        load_tokenizer(folder, "clip")
    change(folder / "config.json", model_type="stranger")
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder, "clip")
    assert NO_CODE in str(caught.value)
    assert not ran.exists()


def test_advice_of_libraries_is_not_passed_on():
    asks = "The repository x contains custom code.\nPlease pass the argument `trust_remote_code=True` to allow custom code to be run."
    assert first_line(ValueError(asks)) == NO_CODE
    assert "weights_only" not in first_line(
        ValueError("Weights only load failed. re-running `torch.load` with `weights_only` set to `False`")
    )
    assert first_line(ValueError("plain\nmore")) == "plain"
    assert wants_code({"vision_config": [{"attn_implementation": {"": "a/b"}}], "tokenizer_kwargs": {"trust_remote_code": 1}}) == [
        "vision_config.0.attn_implementation",
        "tokenizer_kwargs.trust_remote_code",
    ]
    assert wants_code({"attn_implementation": "sdpa", "trust_remote_code": False, "auto_map": {"AutoModel": "x.Y"}}) == []


# every call in the sources


def calls() -> list[tuple[str, str, dict[str, str]]]:
    """(place, what is called, its keywords as text) of every call in src."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {str(keyword.arg): ast.unparse(keyword.value) for keyword in node.keywords}
                found.append((f"{path.relative_to(SOURCE)}:{node.lineno}", ast.unparse(node.func), keywords))
    return found


@pytest.mark.slow
def test_every_reader_of_transformers_is_told_not_to_trust():
    readers = [(where, keywords) for where, name, keywords in calls() if name.endswith((".from_pretrained", ".from_hub"))]
    assert len(readers) >= 5
    assert [where for where, keywords in readers if keywords.get("trust_remote_code") != "False"] == []
    assert [where for where, keywords in readers if keywords.get("local_files_only") != "True"] == []
    models = [(where, keywords) for where, keywords in readers if "output_loading_info" in keywords or "dtype" in keywords]
    assert len(models) >= 2
    assert [where for where, keywords in models if "attn_implementation" not in keywords] == []


@pytest.mark.slow
def test_every_reader_of_pickles_takes_weights_only():
    readers = [(where, keywords) for where, name, keywords in calls() if name in ("torch.load", "open_clip.create_model")]
    assert len(readers) >= 3
    safe = {"weights_only": "True"}
    wrong = [where for where, keywords in readers if safe.items() - keywords.items() and keywords.get("load_weights") != "False"]
    assert wrong == []


@pytest.mark.slow
def test_timm_reads_no_folder_but_one_that_was_checked():
    """`timm.create_model` takes names of folders and of the hub; only teachers do, after `check_folder`."""
    makers = [where for where, name, _ in calls() if name in ("timm.create_model", "create_model")]
    allowed = ("teachers/timm.py", "students/", "formats/timm")
    assert makers
    assert [where for where in makers if not where.startswith(allowed)] == []
