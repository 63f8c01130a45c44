"""`amradio export`: a model handed over in another format, reloaded and compared before success is reported."""

import copy
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from .. import formats
from ..console import PHASES, print_text
from ..devices import DTYPES
from ..engine.lock import Lock
from ..errors import UserError, brief, nearest, together
from ..features import KINDS, Features
from ..files import disk_errors, user_path
from ..formats import ExportSettings, Format, LoadedModel
from ..formats.model_card import card
from ..formats.model_folder import CARD_FILE, PLACEHOLDER
from ..image_input import LARGEST
from ..licences import NOT_STATED, licence_by_name
from ..model import head_names
from ..network import Network, cast_weights
from .tables import print_table

SEED = 0
READERS = {
    "tensorrt": ("TensorRT", "onnx"),
    "trt": ("TensorRT", "onnx"),
    "onnxruntime": ("ONNX Runtime", "onnx"),
    "openvino": ("OpenVINO", "onnx"),
    "directml": ("DirectML", "onnx"),
    "huggingface": ("transformers", "transformers"),
    "vllm": ("vLLM", "hf"),
    "tensorrt-llm": ("TensorRT-LLM", "hf"),
    "radio": ("NVlabs/RADIO", "torchhub"),
    "pytorch": ("torch.hub", "torchhub"),
    "torch": ("torch.hub", "torchhub"),
    "safetensors": ("amradio.load", "amradio"),
}
"""What users ask for by name -> (as it is spelt, the format that it reads)."""
MANY = 6
"""Names that are printed before the rest is counted."""


class Difference(NamedTuple):
    """How far an output of the written model is from ours."""

    output: str
    """`backbone/summary`, `clip/spatial`, ..."""
    largest: float | None
    """Largest absolute difference, in units of the output's deviation where that is above 1; None where the library has no such output."""


class Exported(NamedTuple):
    """What was written."""

    path: Path
    differences: tuple[Difference, ...]
    """Of every output that the format has; empty where the target library is not installed."""
    left_out: tuple[str, ...]
    """Heads that the format has no place for."""
    snippet: str
    """The Python lines with which a user loads it."""
    rules: str | None = None
    """What a reader that is not run here makes of the file by its published rules, where that was compared, too."""


def export(
    path: str | Path,
    format: str,
    out: str | Path,
    *,
    heads: str | Sequence[str] | None = None,
    dtype: str | None = None,
    image_size: int | None = None,
    spectral: bool = False,
) -> Exported:
    """Writes a model in another format, reads it back there, compares all outputs, and prints how to use it.

    Args:
        path: a model in any format that amradio reads, or a run folder.
        format: a name of `formats.FORMATS`: amradio, torchhub, hf, transformers, timm or onnx.
        out: a new file or folder; nothing is overwritten.
        heads: names of the heads to include (a text is one name); None for all that the format can hold.
        dtype: of the weights, `float32`, `float16` or `bfloat16`; None for that of the model.
        image_size: px of the side, for `onnx`; None for every size where the student is a ViT, else for the size of the last training.
        spectral: for `torchhub`: linear layers in the form of spectral reparametrisation, for training that goes on in it.

    Raises UserError, and leaves nothing behind, where the format cannot hold the model or outputs differ after reading it back.
    """
    form, target = _format(format), user_path(out, "--out")
    _check_out(form, target)
    if image_size is not None and not form.takes_image_size:
        raise UserError(f"image_size: what is written as '{form.name}' takes images of every legal size; leave it out")
    if spectral and not form.takes_spectral:
        raise UserError(f"spectral: what is written as '{form.name}' has no place for reparametrised layers; 'torchhub' has")
    with PHASES.phase(f"reading {path}"):
        loaded = formats.read(path)
    (chosen, left_out), _, _ = together(
        lambda: _choose_heads(loaded, form, heads), lambda: _check_dtype(dtype), lambda: _check_image_size(loaded, image_size)
    )
    model = _cast(_with_licences(chosen), dtype)
    settings = ExportSettings(tuple(model.config.heads), _dtype_of(model.network), image_size, spectral)
    if spectral and settings.dtype != "float32":
        raise UserError(f"spectral: {settings.dtype} is too coarse for the norms of layers; give dtype float32")
    reasons = form.unsupported_reasons(model.config, model.network)
    if reasons:
        raise UserError(*(f"{path}: cannot be written as '{form.name}': {reason}" for reason in reasons))
    with _aside(form, target) as written:
        with PHASES.phase(f"writing format {form.name}"):
            form.write(written, model, settings)
        with PHASES.phase(f"reloading it with {form.reader} and comparing"):
            differences = compare(form, written, model, settings)
            rules = form.rules(written, model, settings)
            _check_ancestors(form, written, model)
        lines = form.snippet(written, settings)
        if not form.suffix:
            text = card(model.config, model.network, {form.name: lines.replace(str(written), PLACEHOLDER)})
            (written / CARD_FILE).write_text(text, encoding="utf-8")
    exported = Exported(target, differences, left_out, lines.replace(str(written), str(target)), rules)
    _report(exported, form, loaded, settings)
    return exported


def _format(name: str) -> Format:
    form_named = next((form for form in formats.FORMATS if form.name == name), None)
    if form_named is None:
        there = [form.name for form in formats.FORMATS]
        reader, format_of_it = READERS.get(name.lower(), ("", ""))
        hint = f"{reader} reads '{format_of_it}'" if reader else nearest(name, there).removesuffix(f"there is: {', '.join(sorted(there))}")
        raise UserError(f"format: there is no '{name}'; {hint + '; ' if hint else ''}there is: {', '.join(there)}")
    return form_named


def _check_out(form: Format, out: Path) -> None:
    if form.suffix and not out.name.endswith(form.suffix):
        raise UserError(f"out: {out}: format '{form.name}' is a file whose name ends in {form.suffix}; give such a name")
    taken = (out.is_dir() and any(out.iterdir())) if not form.suffix else out.is_dir()
    if taken or (out.exists() and not out.is_dir()):
        raise UserError(f"out: {out} exists; nothing was touched; give another name")


def _choose_heads(loaded: LoadedModel, form: Format, wanted: str | Sequence[str] | None) -> tuple[LoadedModel, tuple[str, ...]]:
    """The model with the wanted heads alone, and the heads that the format has no place for."""
    there, places = loaded.config.heads, form.supported_heads(loaded.config)
    names = tuple(name for name in there if name in places) if wanted is None else tuple(head_names(wanted, there))
    lost = [name for name in names if name not in places]
    problems = [f"heads: format '{form.name}' has no place for head '{name}'; leave it out" for name in lost]
    if problems:
        raise UserError(*problems)
    network = loaded.network
    kept = network.with_heads(names)
    config = loaded.config.model_copy(update={"heads": {name: there[name] for name in names}})
    left_out = tuple(name for name in there if name not in places) if wanted is None else ()
    return LoadedModel(config, kept, loaded.ignored_keys, loaded.ours), left_out


def _with_licences(model: LoadedModel) -> LoadedModel:
    """Official files name the teachers but not their licences: those of well-known ones are filled in."""
    heads = {}
    for name, head in model.config.heads.items():
        known = licence_by_name(str(head.teacher.get("source")))
        licence = head.teacher.get("licence") or (known if known != NOT_STATED else None)
        heads[name] = head.model_copy(update={"teacher": {**head.teacher, "licence": licence}})
    return model._replace(config=model.config.model_copy(update={"heads": heads}))


def _check_ancestors(form: Format, written: Path, model: LoadedModel) -> None:
    """Raises UserError where the written file does not state every model that this one was distilled from."""
    stated = form.stated_ancestors(written)
    lost = [ancestor.name for ancestor in model.config.distilled_from if ancestor.model_dump() not in stated]
    if lost:
        raise UserError(f"export: the written file does not state that the model was distilled from {', '.join(lost)}; nothing was kept")


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype: there is no '{dtype}'; {nearest(str(dtype), DTYPES)}")


def _check_image_size(loaded: LoadedModel, size: int | None) -> None:
    """Raises UserError with the nearest legal size where the model does not take this one."""
    if size is None:
        return
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= LARGEST:
        raise UserError(f"image_size: should be px from 1 to {LARGEST:,}, found {brief(size)}")
    legal = loaded.network.student.nearest_size(size, size)
    if legal != (size, size):
        raise UserError(f"image_size: the model does not take {size} px; the nearest legal size is {legal[0]}")


def _cast(model: LoadedModel, dtype: str | None) -> LoadedModel:
    if dtype is None:
        return model
    network = copy.deepcopy(model.network)
    cast_weights(network, DTYPES[dtype])
    return model._replace(network=network)


def _dtype_of(network: Network) -> str:
    weights_dtype = next(parameter.dtype for parameter in network.parameters())
    return next(name for name, dtype in DTYPES.items() if dtype == weights_dtype)


@contextmanager
def _aside(form: Format, out: Path) -> Iterator[Path]:
    """A place beside `out` to write to; it takes the place of `out` when all went well, and is gone when not.

    A file gets a folder to itself, under its own name: ONNX puts large weights into a second file, which goes along, and first.
    """
    aside = out.with_name(f".part-{out.name}")
    written = aside / out.name if form.suffix else aside
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    with Lock(out.with_name(f".{out.name}.lock"), f"out: {out}") as lock:
        lock.take()
        yield from _written_aside(form, out, aside, written)


def _written_aside(form: Format, out: Path, aside: Path, written: Path) -> Iterator[Path]:
    with disk_errors(out.parent):
        _remove(aside)  # of an export that was killed
        aside.mkdir()
    try:
        with disk_errors(out.parent):
            yield written
            moves = {path: out.with_name(path.name) for path in sorted(aside.iterdir(), reverse=True)} if form.suffix else {aside: out}
            taken = [target for target in moves.values() if target.is_file()]
            if taken:
                raise UserError(f"out: {taken[0]} exists; nothing was touched; give another name")
            for path, target in moves.items():
                path.replace(target)
    finally:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


@torch.inference_mode()
def compare(form: Format, target: Path, model: LoadedModel, settings: ExportSettings) -> tuple[Difference, ...]:
    """The largest difference of every output between `target`, computed by `form.reader`, and the model, on all `form.sizes`.

    Empty where the library is not installed. Raises UserError where a difference is above `form.tolerance`, where an output is not
    finite or has another shape, and where a head that was to go along is missing.
    """
    network = copy.deepcopy(model.network).float().eval()
    largest: dict[str, float | None] = {}
    for height, width in form.sizes(model, settings):
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(SEED))
        theirs = form.outputs(target, images, settings)
        if theirs is None:
            return ()
        for name, difference in _differences(network(images, None, settings.heads), theirs).items():
            largest[name] = None if difference is None else max(largest.get(name) or 0.0, difference)
    wrong = [
        f"{name} differs by {value:.1e}" for name, value in largest.items() if value is not None and not value <= form.tolerance(settings)
    ]
    if wrong:
        allowed = f"more than {form.tolerance(settings):.0e} is not accepted; nothing was kept"
        raise UserError(f"export: reloaded with {form.reader}, the written model is not the same: {', '.join(wrong)}; {allowed}")
    return tuple(Difference(*pair) for pair in largest.items())


def _differences(ours: Mapping[str, Features], theirs: Mapping[str, Features]) -> dict[str, float | None]:
    """By output; infinite where a head is missing, or an output not finite or of another shape; None where the library has no such kind."""
    differences: dict[str, float | None] = {}
    for name, features in ours.items():
        if name not in theirs:
            differences[name] = float("inf")
            continue
        for kind in KINDS:
            expected, actual = features.of(kind), theirs[name].of(kind)
            if expected is None or actual is None:
                differences |= {} if expected is None else {f"{name}/{kind}": None}
                continue
            same_shape = expected.shape == actual.shape and bool(actual.isfinite().all())
            gap = (expected - actual.float()).abs().max().item() if same_shape else float("inf")
            differences[f"{name}/{kind}"] = gap / max(1.0, expected.std().item())
    return differences


def _report(exported: Exported, form: Format, loaded: LoadedModel, settings: ExportSettings) -> None:
    files = [exported.path] if exported.path.is_file() else [path for path in exported.path.rglob("*") if path.is_file()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    print_text(f"{exported.path}: {loaded.config.student.type} in format '{form.name}', {settings.dtype}, {megabytes:,.1f} MB")
    if exported.differences:
        print_text(f"Reloaded with {form.reader}. Largest difference from the model, at two sizes or at the only one:")
        print_table(
            "",
            ("output", "difference"),
            [(name, "no such output" if value is None else f"{value:.1e}") for name, value in exported.differences],
        )
    else:
        print_text(f"Not compared: {form.reader} is not installed here.")
    if exported.rules:
        print_text(f"The official reader's published rules, computed from the written file, give the same model: {exported.rules}")
    if exported.left_out:
        print_text(f"Left out, because the format has no place for them: {', '.join(exported.left_out)}")
    if loaded.ignored_keys:
        more = f" and {len(loaded.ignored_keys) - MANY} more" if len(loaded.ignored_keys) > MANY else ""
        print_text(f"In the file that was read, but not used by the model: {', '.join(loaded.ignored_keys[:MANY])}{more}")
    print(f"\nLoad it:\n\n{exported.snippet}")
