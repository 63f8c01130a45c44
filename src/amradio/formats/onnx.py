"""ONNX: the backbone and heads as one graph with named outputs, for onnxruntime, TensorRT and others."""

import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from ..features import KINDS, Features
from ..network import Network
from ..students.vit import Vit
from .base import ExportSettings, Format, LoadedModel
from .model_folder import ANCESTRY, ancestry

OPSET = 18
"""The least that torch's exporter writes; TensorRT takes it from version 10 on."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
DTYPES = ("float32", "float16")
FP16_TOLERANCE = 2e-2
"""As a share of an output's deviation. Seen: 2e-3 at most, of a ViT of 12 blocks and 192 channels with random weights."""
INLINE_BYTES = 1_900_000_000
"""Weights beyond this lie in a second file, NAME.onnx.data: one protobuf file holds 2 GB at most."""
DEFAULT_SIZE = 224
"""px of a graph of one size where neither the settings nor the model say one."""
FIRST_BYTE = b"\x08"
"""Of a serialised ONNX model: its field 1, the version of the format."""


class Graph(nn.Module):
    """What is exported: float32 images [B, 3, H, W] in [0, 1] -> a flat tuple of float32 tensors, in the order of `names`."""

    def __init__(self, network: Network, heads: Sequence[str]):
        super().__init__()
        self.network = network
        self.heads = tuple(heads)
        self.names: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Sets `names`: `summary`, `spatial`, and `NAME_summary`, `NAME_spatial` of a head."""
        outputs = named(self.network(images, None, self.heads))
        self.names = tuple(outputs)
        return tuple(tensor.float() for tensor in outputs.values())


def named(features: Mapping[str, Features]) -> dict[str, Tensor]:
    """`backbone` and heads -> tensors by the name of their output."""
    pairs = {(name, kind): one.of(kind) for name, one in features.items() for kind in KINDS}
    return {kind if name == "backbone" else f"{name}_{kind}": tensor for (name, kind), tensor in pairs.items() if tensor is not None}


class Onnx(Format):
    """`onnx`: images in, features out. A ViT takes every batch and, unless `image_size` is given, every size; others one size."""

    name = "onnx"
    suffix = ".onnx"
    reader = "onnxruntime"
    takes_image_size = True

    def recognises(self, path: Path) -> bool:
        """A file named .onnx that begins as one."""
        if path.suffix != ".onnx" or not path.is_file():
            return False
        try:
            with path.open("rb") as file:
                return file.read(1) == FIRST_BYTE
        except OSError:
            return False

    def read(self, path: Path, align_corners: bool | None = None) -> LoadedModel:
        """Raises UserError: a graph is no network that could be trained or exported again."""
        del align_corners
        raise UserError(f"{path}: an ONNX file is run (onnxruntime, TensorRT), not loaded; load the model that it was exported from")

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        """Writes an ONNX file, with weights beside it where one file cannot hold them.

        Raises UserError also where the libraries of the extra `onnx` are not installed.
        """
        check_installed()
        if settings.dtype not in DTYPES:
            raise UserError(f"dtype {settings.dtype}: an ONNX file is of float32 or float16; set dtype to one of them")
        graph = Graph(model.network, settings.heads).eval()
        fixed = fixed_size(model, settings)
        step = model.network.student.patch_size
        images = torch.rand(2, 3, *(fixed or (3 * step, 2 * step)))
        with torch.inference_mode():
            graph(images)
        names = graph.names
        program = _export(graph, images, names, None if fixed else step)
        for node in program.model.graph:
            node.metadata_props.clear()  # traces of the code that made it, with this machine's paths
        program.model.metadata_props.update(_metadata(names, settings, fixed, step) | ancestry(model.config))
        total = sum(tensor.nbytes for tensor in model.network.state_dict().values())
        program.save(target, external_data=total > INLINE_BYTES)

    def tolerance(self, settings: ExportSettings) -> float:
        """That of all formats in float32. A float16 graph computes in float16, but for norms, positions and normalising images."""
        return FP16_TOLERANCE if settings.dtype == "float16" else 1e-4

    def sizes(self, model: LoadedModel, settings: ExportSettings) -> tuple[tuple[int, int], ...]:
        """Those of all formats; of a graph of one size that size."""
        fixed = fixed_size(model, settings)
        return (fixed,) if fixed else super().sizes(model, settings)

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> Mapping[str, Features] | None:
        """What onnxruntime computes from the file."""
        if find_spec("onnxruntime") is None:
            return None
        import onnxruntime

        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        outputs = [output.name for output in session.get_outputs()]
        tensors = dict(zip(outputs, map(torch.from_numpy, session.run(outputs, {"images": images.numpy()})), strict=True))
        heads = {name: Features(*(tensors.get(f"{name}_{kind}") for kind in KINDS)) for name in settings.heads}
        return {"backbone": Features(*(tensors.get(kind) for kind in KINDS)), **heads}

    def stated_ancestors(self, target: Path) -> Any:
        """`distilled_from` as plain values, from the metadata of the graph."""
        import onnx

        stated = {entry.key: entry.value for entry in onnx.load(str(target), load_external_data=False).metadata_props}
        return json.loads(stated[ANCESTRY])

    def snippet(self, target: Path, settings: ExportSettings) -> str:
        """Lines that load it with onnxruntime."""
        import onnx

        del settings
        stated = {entry.key: entry.value for entry in onnx.load(str(target), load_external_data=False).metadata_props}
        names = json.loads(stated["outputs"])
        lines = [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{target}", providers=onnxruntime.get_available_providers())',
            f"# images: NumPy float32 [B, 3, H, W], RGB in [0, 1], not normalised; {stated['sizes']}",
            f"# opset {stated['opset']}, {stated['dtype']} inside; summaries [B, D], maps [B, H, W, D], float32",
            f'{", ".join(names)} = session.run({names}, {{"images": images}})',
        ]
        if target.with_name(target.name + ".data").is_file():
            lines.insert(1, f"# the weights lie beside it in {target.name}.data: move both together")
        return "\n".join(lines)


def check_installed() -> None:
    """Raises UserError where a library that writes or runs ONNX is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"onnx: {' and '.join(missing)} not installed; pip install 'amradio[onnx]'")


def fixed_size(model: LoadedModel, settings: ExportSettings) -> tuple[int, int] | None:
    """(height, width) in px of a graph of one size; None where it takes every size, as a ViT's does unless a size is asked for."""
    student = model.network.student
    if isinstance(student, Vit) and settings.image_size is None:
        return None
    size = settings.image_size or model.config.image_size or DEFAULT_SIZE
    return student.nearest_size(size, size)


def _export(graph: Graph, images: Tensor, names: Sequence[str], step: int | None) -> Any:
    """The graph as torch's ONNXProgram, traced with `images`. step: px of which H and W are any multiples; None for those of `images`."""
    from torch.export import Dim

    free: dict[int, Any] = {0: Dim("batch")}
    if step is not None:
        free |= {2: step * Dim("rows"), 3: step * Dim("columns")}
    try:
        # Fused attention lays its output out in another way than the plain operators that stand for it in the graph: views of it fail.
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")  # the exporter's notes about its own parts
            return torch.onnx.export(
                graph,
                (images,),
                input_names=["images"],
                output_names=list(names),
                opset_version=OPSET,
                dynamic_shapes={"images": free},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"onnx: torch's exporter cannot write this student: {str(error).strip().splitlines()[0]}") from error


def _metadata(names: Sequence[str], settings: ExportSettings, fixed: tuple[int, int] | None, step: int) -> dict[str, str]:
    """What the file says of itself."""
    return {
        "producer": "amradio",
        "opset": str(OPSET),
        "dtype": settings.dtype,
        "sizes": f"{fixed[0]} x {fixed[1]} px" if fixed else f"H and W multiples of {step} px",
        "input": "images: float32 [B, 3, H, W], RGB in [0, 1]; mean and std are in the graph",
        "outputs": json.dumps(list(names)),
    }
