"""Images/s of a loaded ViT against transformers' RadioModel and timm's radio ViT with the same weights, in one run; ours through ONNX too.

    python benchmarks/inference.py --rounds 7 --json benchmarks/results/inference.json
    python benchmarks/inference.py --device cuda --dtype bfloat16 --batch-size 32 --rounds 7 --json benchmarks/results/inference_gpu.json

A model folder with random weights is written, loaded by `amradio.load`, and exported by our formats to the two libraries, which load it
as a user would. Before anything is timed, all say the same of a batch. Each round times all of them once, in an order that rotates; what
is printed is the median over the rounds, and from the slowest to the fastest. All get RGB in [0, 1] and normalise it themselves (timm's is
normalised before it, within the time). ONNX Runtime computes on the CPU, in float32; on a GPU it is left out.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime
import timm
import torch
import transformers

import amradio
from amradio.devices import find_device
from amradio.environment import environment
from amradio.formats import FORMATS, ExportSettings, LoadedModel
from amradio.formats.model_folder import write_folder
from amradio.network import NetworkConfig

FORM = {form.name: form for form in FORMATS}
TOLERANCE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
"""Largest difference to ours that counts as the same model, in units of the map's deviation: checks the wiring, not the numbers."""
OURS = "amradio"


def make_folder(folder, options):
    """A model folder of four summaries and four registers, as RADIOv2.5 and C-RADIOv3 have them."""
    torch.manual_seed(0)
    student = {"type": "vit", "size": options.size, "depth": options.depth}
    config = NetworkConfig.model_validate({"student": student, "num_summaries": 4})
    write_folder(folder, config, config.build(), {"step": 0, "num_steps": 0, "data": "nothing"})
    return folder


def load_all(folder, options, device, dtype):
    """Name -> function of images in [0, 1] -> spatial features [B, N, D], each loaded by its own library."""
    model = amradio.load(folder / "model", device, dtype=options.dtype)
    found, settings = LoadedModel(model.config, model.network), ExportSettings((), options.dtype)
    native, flexible = folder / "transformers", folder / "timm.safetensors"
    native.mkdir()
    FORM["transformers"].write(native, found, settings)
    FORM["timm"].write(flexible, found, settings)
    radio = transformers.AutoModel.from_pretrained(native, dtype=dtype).to(device).eval()
    call = FORM["timm"].call(flexible)
    vit = timm.create_model(call.architecture, checkpoint_path=str(flexible), **call.overrides).to(device, dtype).eval()
    mean, std = model.network.student.mean, model.network.student.std
    prefix = vit.num_prefix_tokens

    def run_timm(images):
        return vit.forward_features(((images - mean) / std).to(dtype))[:, prefix:]

    return {
        OURS: lambda images: model(images).spatial.flatten(1, 2),
        "transformers": lambda images: radio(pixel_values=images.to(dtype)).features,
        "timm": run_timm,
    }


def load_onnx(folder):
    """Ours through ONNX Runtime on the CPU, with as many threads as torch has."""
    model = amradio.load(folder / "model")
    FORM["onnx"].write(folder / "model.onnx", LoadedModel(model.config, model.network), ExportSettings(()))
    limits = onnxruntime.SessionOptions()
    limits.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / "model.onnx", limits, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["spatial"], {"images": images.numpy()})[0]).flatten(1, 2)


def gather(folder, options, device, dtype):
    """Everything that is timed, by name: `amradio`, `amradio compiled`, `amradio onnx`, ..."""
    runners = load_all(folder, options, device, dtype)
    if not options.eager_only:
        runners |= {f"{name} compiled": torch.compile(run, dynamic=False) for name, run in runners.items()}
    if device.type == "cpu":
        runners[f"{OURS} onnx"] = load_onnx(folder)
    return runners


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(run, images, repeats):
    wait(images.device)
    start = time.perf_counter()
    for _ in range(repeats):
        run(images)
    wait(images.device)
    return time.perf_counter() - start


def check(runners, images, dtype):
    """All say what ours says; this also compiles and warms up."""
    expected = runners[OURS](images).float()
    for name, run in runners.items():
        gap = float((run(images).float() - expected).abs().max() / expected.std())
        assert gap < TOLERANCE[dtype], f"{name} differs from {OURS} by {gap:.1e}"


def measure(runners, images, options):
    """Name -> images/s of each round."""
    check(runners, images, options.dtype)
    speeds = {name: [] for name in runners}
    names = list(runners)
    for number in range(options.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = seconds(runners[name], images, options.repeats)
            speeds[name].append(options.repeats * len(images) / taken)
    return speeds


def ratios(speeds, kind):
    """Of each round: ours over the fastest of the others of the same kind (`""` or ` compiled`)."""
    others = [found for name, found in speeds.items() if name in (f"transformers{kind}", f"timm{kind}")]
    return [ours / max(round_) for ours, *round_ in zip(speeds[f"{OURS}{kind}"], *others, strict=True)]


def table(found):
    """Markdown: a row a runner, a column an image size."""
    sizes = list(found)
    lines = ["| images/s, median (slowest to fastest) | " + " | ".join(f"{size} px" for size in sizes) + " |"]
    lines.append("|---|" + "--:|" * len(sizes))
    for name in found[sizes[0]]:
        cells = [f"{statistics.median(found[s][name]):.2f} ({min(found[s][name]):.2f} to {max(found[s][name]):.2f})" for s in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for kind in [kind for kind in ("", " compiled") if f"{OURS}{kind}" in found[sizes[0]]]:
        cells = [f"{statistics.median(r):.3f} ({min(r):.3f} to {max(r):.3f})" for r in (ratios(found[s], kind) for s in sizes)]
        lines.append(f"| {OURS}{kind} / fastest of the others | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", help="of the ViT student")
    parser.add_argument("--depth", type=int, help="blocks, in place of the size's own")
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[224, 432, 768])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="batches a round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=sorted(TOLERANCE))
    parser.add_argument("--eager-only", action="store_true", help="without torch.compile")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, dtype = find_device(options.device, "--device"), getattr(torch, options.dtype)
    found = {}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        make_folder(Path(name) / "model", options)
        runners = gather(Path(name), options, device, dtype)
        for size in options.image_sizes:
            images = torch.rand(options.batch_size, 3, size, size, generator=torch.Generator().manual_seed(size)).to(device)
            found[size] = measure(runners, images, options)
    print(table(found))
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        compared = {
            size: {kind.strip() or "eager": ratios(s, kind) for kind in ("", " compiled") if OURS + kind in s} for size, s in found.items()
        }
        report = {"images_per_second": found, "ratio": compared, "settings": settings, "environment": environment()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
