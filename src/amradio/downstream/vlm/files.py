"""Folders of vision-language models: written as transformers writes LLaVA, and read back with checks."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from ...errors import UserError, shown
from ...files import disk_errors, read_json, user_path, write_aside
from ...formats.base import CONFIG_FILE
from ...formats.model_folder import PLACEHOLDER, folder_of
from ...libraries import first_line, refuse_code
from ...teachers.loading import quiet
from .assembly import Vlm
from .recognition import is_vlm
from .tower import TYPE, tower_faults

OURS = (TYPE, "radio")
"""`model_type` of towers that normalise images by themselves."""


def write_vlm(vlm: Vlm, folder: Path, about: str, needs_amradio: bool = True) -> None:
    """Writes an ordinary LLaVA folder: config.json, model.safetensors, tokenizer, processor, README.md.

    about: how it was made, Markdown. needs_amradio: whether the tower is ours. Raises UserError where the disk refuses.
    """
    with disk_errors(folder), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        vlm.network.save_pretrained(folder)
        vlm.processor.save_pretrained(folder)
        mode = (folder / CONFIG_FILE).stat().st_mode
        for file in folder.glob("*.safetensors"):
            file.chmod(mode)  # the library writes weights for their owner alone
        write_aside(folder / "README.md", f"{about.rstrip()}\n\n{_loading(needs_amradio)}".encode())


def _loading(needs_amradio: bool) -> str:
    registration = "import amradio.downstream.vlm.tower  # registers the vision tower with transformers\n" if needs_amradio else ""
    return f"""## Loading

```python
{registration}from transformers import AutoProcessor, LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained("{PLACEHOLDER}")
processor = AutoProcessor.from_pretrained("{PLACEHOLDER}")
```

Images go in without mean and standard deviation (`do_normalize` is false): the tower normalises by itself.
"""


def load_vlm(path: str | Path) -> Vlm:
    """A vision-language model on the CPU in float32, in evaluation mode.

    path: a LLaVA folder, or a run folder of `amradio vlm train`. Raises UserError where there is none, a file is damaged or lacks weights,
    or the processor normalises images that the tower normalises as well.
    """
    folder = folder_of(user_path(path))
    if not is_vlm(folder):
        raise UserError(f"{shown(folder)}: there is no vision-language model; give a folder of `amradio vlm train` or of LLaVA")
    stated = read_json(folder / CONFIG_FILE)
    refuse_code(stated, str(folder / CONFIG_FILE))
    try:
        with quiet():
            network, report = cast(Any, LlavaForConditionalGeneration).from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
            )
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except UserError as error:  # of our tower's part of config.json
        raise UserError(*(f"{shown(folder / CONFIG_FILE)}: {problem}" for problem in error.problems)) from None
    except Exception as error:  # the library raises whatever its readers do
        raise UserError(f"{shown(folder)}: it cannot be read: {first_line(error)}; copy or download the folder again") from None
    problems = [f"{shown(folder)}: {problem}" for problem in _faults(network, processor, report)]
    if problems:
        raise UserError(*problems)
    return Vlm(network.eval(), processor)


def _faults(network: Any, processor: Any, report: Any) -> list[str]:
    """Why the parts of a folder are no vision-language model together, one sentence each."""
    problems: list[str] = []
    for key, what in (("missing_keys", "lack {} parameters"), ("mismatched_keys", "have other shapes than config.json states, {} of them")):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in report[key])
        if names:
            problems.append(f"the weights {what.format(len(names))}, first '{names[0]}'; copy the folder again")
    wrong = [] if problems else [name for name, tensor in network.named_parameters() if not tensor.isfinite().all()]
    if wrong:
        problems.append(f"the weights have values that are no numbers, first in '{wrong[0]}'; copy the folder again, or train it again")
    config = network.config
    if config.vision_config.model_type in OURS and processor.image_processor.do_normalize:
        advice = "the vision tower does so by itself, and twice is wrong; set do_normalize to false in processor_config.json"
        problems.append(f"its processor normalises images; {advice}")
    if config.vision_config.model_type == TYPE:
        problems += tower_faults(network.model.vision_tower)
    if processor.tokenizer.convert_tokens_to_ids(processor.image_token) != config.image_token_id:
        stated = f"image_token_index is {config.image_token_id} in config.json, and '{processor.image_token}' is another token"
        problems.append(f"{stated} of the tokenizer; copy the folder again")
    if processor.chat_template is None:
        problems.append("there is no chat template; copy chat_template.jinja there")
        return problems
    try:
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True)
    except Exception as error:  # a template is a program
        problems.append(f"its chat template cannot be used: {first_line(error)}; copy chat_template.jinja there")
    return problems
