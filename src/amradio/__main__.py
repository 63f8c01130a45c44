"""The command line: `amradio <verb> ...`. Each verb is one public Python function, and this only calls it."""

import argparse
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .console import open_standard_streams, outlive_console
from .errors import UserError
from .interruption import Interruptible

WHEN_STOPPED = {
    "distill": "Run the same command to resume.",
    "quickstart": "Run the same command to resume.",
    "embed": "What is done is kept; run the same command to resume.",
    "evaluate": "No results were written.",
    "export": "Nothing was written.",
}
"""What a command that a signal stops tells its user."""
EMBED_OPTIONS = ("heads", "spatial", "image_size", "batch_size", "dtype", "precision", "device", "num_workers")
WORDS_HELP = "recipe files and key=value words, merged left to right"


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    top = argparse.ArgumentParser(prog="amradio", description="Distil any set of vision foundation models into one student.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    quickstart = verbs.add_parser(
        "quickstart", help="three small teachers into one student on generated scenes: offline, on a CPU, in minutes"
    )
    quickstart.add_argument("words", nargs="*", metavar="key=value", help="changes to the built-in recipe, e.g. out=DIR")

    distill = verbs.add_parser("distill", help="run or resume a recipe")
    distill.add_argument("words", nargs="+", metavar="RECIPE.yaml|key=value", help=WORDS_HELP)
    distill.add_argument("--dry-run", action="store_true", help="check everything, print recipe, teachers and data, and train nothing")

    evaluate = verbs.add_parser("evaluate", help="student, heads and teachers side by side on every task")
    evaluate.add_argument("path", metavar="PATH", help="a run folder or a model folder")
    evaluate.add_argument(
        "words",
        nargs="*",
        metavar="EVALUATION.yaml|key=value",
        help="evaluation files and key=value words; without one: on generated scenes",
    )
    evaluate.add_argument("--json", metavar="FILE", help="write all results with their settings, counts and seconds")

    _add_embed(verbs)
    _add_export(verbs)
    verbs.add_parser("teachers", help="well-known teachers: dims, licences, what is on this machine")
    verbs.add_parser("students", help="students and their sizes")
    verbs.add_parser("doctor", help="what this machine can do, and what is missing")
    return top


def _add_embed(verbs: Any) -> None:
    embed = verbs.add_parser("embed", help="features of a folder, a list or tar shards of images, into one file")
    embed.add_argument("path", metavar="PATH", help="a run folder, or a model in any format that is read")
    embed.add_argument("images", metavar="IMAGES", help="a folder of images, a text file with a path on each line, or tar shards")
    embed.add_argument("--out", required=True, metavar="FILE", help="a new file that ends with .safetensors or .parquet")
    embed.add_argument("--heads", metavar="A,B", help="heads whose features are written beside those of the backbone")
    embed.add_argument("--spatial", choices=("none", "pooled", "full"), help="maps: left out (default), their mean, every cell")
    embed.add_argument("--image-size", metavar="N", help="px of the short side, or `own` for that of each image; default: that of training")
    embed.add_argument("--batch-size", type=int, metavar="N", help="images that the model sees at once (default 64)")
    embed.add_argument("--dtype", choices=("float16", "float32"), help="of the numbers in the file (default float16)")
    embed.add_argument("--precision", choices=("auto", "float32", "bfloat16"), help="of the computation (default float32)")
    embed.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda or cuda:N")
    embed.add_argument("--num-workers", type=int, metavar="N", help="processes that read images; default: the cores, less one")


def _add_export(verbs: Any) -> None:
    export = verbs.add_parser("export", help="hand a model over in another format; it is reloaded there and compared")
    export.add_argument("path", metavar="PATH", help="a run folder, or a model in any format that is read")
    export.add_argument("--format", required=True, metavar="FORMAT", help="amradio, torchhub, hf, transformers, timm or onnx")
    export.add_argument("--out", required=True, metavar="PATH", help="a new file or folder; nothing is overwritten")
    export.add_argument("--heads", metavar="A,B", help="heads that go along; default: all that the format has a place for")
    export.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights; default: as they are")
    export.add_argument("--image-size", type=int, metavar="N", help="px, for a format of one fixed size")


def call(options: argparse.Namespace) -> None:
    """Calls the verb's function; imports it only now, so that help is quick."""
    if options.verb == "distill":
        from .recipe import Recipe

        recipe = Recipe.load(*options.words)
        from .commands import distill

        distill.dry_run(recipe) if options.dry_run else distill.distill(recipe)
    elif options.verb == "quickstart":
        from .recipe import Recipe

        Recipe.load("quickstart", *options.words)  # a misspelt key is answered before torch is imported
        from .commands.quickstart import quickstart

        quickstart(*options.words)
    elif options.verb == "evaluate":
        from .commands.evaluate import evaluate

        evaluate(options.path, *options.words, json_file=options.json)
    elif options.verb == "embed":
        from .commands.embed import embed

        given = {name: value for name, value in vars(options).items() if name in EMBED_OPTIONS and value is not None}
        embed(options.path, options.images, options.out, **(given | _parsed(given)))
    elif options.verb == "export":
        from .commands.export import export

        heads = None if options.heads is None else [name for name in options.heads.split(",") if name]
        export(options.path, options.format, options.out, heads=heads, dtype=options.dtype, image_size=options.image_size)
    elif options.verb == "doctor":
        from .commands.doctor import doctor

        doctor()
    else:
        from .commands import listings

        listings.list_teachers() if options.verb == "teachers" else listings.list_students()


def _parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    """`--heads a,b` and `--image-size 224` as settings take them."""
    found: dict[str, Any] = {}
    if "heads" in given:
        found["heads"] = [name for name in given["heads"].split(",") if name]
    if str(given.get("image_size", "")).isdigit():
        found["image_size"] = int(given["image_size"])
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after printing what the user can put right."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console in ASCII or Latin-1 prints every name
    options, rest = parser().parse_known_args(words)
    late = [word for word in rest if not word.startswith("-")]  # key=value words behind an option
    if late != rest or (late and not hasattr(options, "words")):
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        options.words += late
    open_standard_streams()
    with outlive_console(), Interruptible(WHEN_STOPPED.get(options.verb, "")) as interruptible:
        try:
            return _ended(options)
        except KeyboardInterrupt:
            return interruptible.code


def _ended(options: argparse.Namespace) -> int:
    """Calls the verb; the exit code of what it ends with."""
    try:
        call(options)
    except UserError as error:
        if options.debug:
            raise
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0 or not error.on_all_processes:
            where = f"error on process {rank}" if rank else "error"
            print("\n".join(f"{where}: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
