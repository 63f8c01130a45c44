"""The verbs of the command line and their options; `grammar` reads them."""

import argparse
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from ..console import columns, command_text, fitted
from ..errors import nearest

WORDS_HELP = "recipe files, names of shipped recipes (`amradio recipes`) and key=value words, merged left to right"
EXAMPLE = "example:"
"""Before the command at the end of a help."""
STDOUT = "-"
"""In place of the name of a file."""


class _Formatter(argparse.HelpFormatter):
    """Lines of at most the width of the terminal; an example that is longer is continued with a backslash, so that it can be pasted."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        prose, example, command = text.partition(EXAMPLE)
        lines = textwrap.wrap(prose, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
        return "\n".join([*lines, *([command_text(command, EXAMPLE, width)] if example else [])])


class Parser(argparse.ArgumentParser):
    """Ends with 2 after one line that says what is wrong and how to write it, below the usage."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, formatter_class=_Formatter, **options)

    def error(self, message: str) -> NoReturn:
        """Prints the usage and `error: message` to stderr, with an example where a word is missing, and raises SystemExit(2)."""
        message = message.replace("the following arguments are required", "missing")
        self.print_usage(sys.stderr)
        print(fitted(f"error: {message}", sys.stderr), file=sys.stderr)
        if self.epilog and "missing" in message:
            print(command_text(self.epilog[self.epilog.index(EXAMPLE) + len(EXAMPLE) :], EXAMPLE, columns()), file=sys.stderr)
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Answers a word that is none of the choices with the nearest one."""
        if action.choices is not None and value not in action.choices:
            named = action if action.option_strings else None
            raise argparse.ArgumentError(named, f"there is no '{value}'; {nearest(str(value), [str(c) for c in action.choices])}")


LISTINGS = {
    "teachers": "well-known teachers: dims, licences, what is on this machine",
    "students": "students and their sizes",
    "recipes": "recipes and evaluation files that come with amradio: command, cost, result",
}


def parser(version: str = "", with_embed_options: bool = True) -> tuple[Parser, dict[str, Parser]]:
    """The command line's parser, and those of its verbs by name.

    with_embed_options: those of `amradio embed` are made from its settings, which takes a moment to import; False leaves them out.
    """
    top = Parser(
        prog="amradio",
        description="Distil any set of vision foundation models into one student.",
        epilog="`amradio VERB --help` shows the options of a verb and an example. example: amradio quickstart",
    )
    top.add_argument("--version", action="version", version=f"amradio {version}")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error; may be written anywhere")
    top.add_argument("--quiet", action="store_true", help="print results, warnings and errors only; may be written anywhere")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, example: str) -> Parser:
        return verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"{EXAMPLE} {example}")

    text = "three small teachers into one student on generated scenes: offline, on a CPU, in minutes"
    quickstart = verb("quickstart", text, "amradio quickstart out=runs/mine")
    quickstart.add_argument("words", nargs="*", default=[], metavar="key=value", help="changes to the built-in recipe, e.g. out=DIR")
    distill = verb("distill", "run or resume a recipe", "amradio distill starter data.train.path=photos out=runs/first --dry-run")
    distill.add_argument("words", nargs="+", metavar="RECIPE|key=value", help=f"{WORDS_HELP}; a run folder stands for its config.yaml")
    distill.add_argument("--dry-run", action="store_true", help="check everything, print recipe, teachers and data, and train nothing")
    _add_detect(verb)
    _add_vlm(verb)
    evaluate = verb(
        "evaluate",
        "student, heads and teachers side by side on every task",
        "amradio evaluate runs/first real_evaluation --json results.json",
    )
    _add_evaluate(evaluate)
    embed = verb(
        "embed",
        "features of a folder, a list or tar shards of images, into one file",
        "amradio embed runs/first photos --out photos.safetensors",
    )
    _add_embed(embed, with_embed_options)
    _add_export(
        verb(
            "export",
            "write a model in another format; it is reloaded there and compared",
            "amradio export runs/first --format onnx --out student.onnx",
        )
    )
    _add_compare(verb("compare", "runs side by side: changed keys, last numbers, floors", "amradio compare runs/first runs/second"))
    _add_show(
        verb("show", "pictures of what a model knows of some images", "amradio show runs/first photos --out shown --text 'a dog' grass")
    )
    _add_demo(verb("demo", "a local page to try a model on pictures: click, type, compare", "amradio demo runs/first photos"))
    for name, text in LISTINGS.items():
        listing = verb(name, text, f"amradio {name} --json")
        listing.add_argument("--json", action="store_true", help="print the same as JSON")
        if name == "recipes":
            listing.add_argument("name", nargs="?", metavar="NAME", help="print this one as a file, to start your own from")
    _add_small(verb)
    return top, dict(verbs.choices)


def _add_detect(verb: Callable[[str, str, str], Parser]) -> None:
    detect = verb(
        "detect",
        "train a detector on a student, or resume its training",
        "amradio detect train model=runs/first data.train.type=scenes out=runs/detector",
    )
    detect.add_argument("action", choices=("train",), metavar="train", help="train: run or resume a recipe of detection")
    detect.add_argument("words", nargs="+", metavar="RECIPE|key=value", help="files and key=value words, merged left to right")


def _add_vlm(verb: Callable[[str, str, str], Parser]) -> None:
    vlm = verb(
        "vlm",
        "train a vision-language model on a student, or resume its training",
        "amradio vlm train vlm_llava model=runs/first language_model=lmsys/vicuna-7b-v1.5 out=runs/vlm",
    )
    vlm.add_argument(
        "action",
        choices=("train", "export"),
        metavar="train|export",
        help="train: run or resume a recipe; export: a folder for transformers alone",
    )
    vlm.add_argument(
        "words",
        nargs="+",
        metavar="RECIPE|key=value",
        help="train: files and key=value words, merged left to right; export: RUN out=FOLDER",
    )


def _add_evaluate(evaluate: Parser) -> None:
    evaluate.add_argument("path", metavar="PATH", help="a run folder or a model folder")
    evaluate.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="EVALUATION|key=value",
        help="evaluation files and key=value words; without one: on generated scenes",
    )
    evaluate.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE.json",
        help="write all results with their settings, counts and seconds; without a name: to stdout, and the tables to stderr",
    )
    evaluate.add_argument(
        "--suite",
        choices=("paper", "dense", "detection", "vlm", "mieb", "clip"),
        metavar="NAME",
        help="published benchmarks, the published numbers beside: paper, dense, detection, vlm, mieb or clip; words change them",
    )
    evaluate.add_argument(
        "--data",
        metavar="FILE",
        help="for --suite: a YAML file with the folders: imagenet, ade20k, voc, coco, navi, nyu, spair, gqa, pope, textvqa, vqav2, "
        "clip_benchmark",
    )


def _add_embed(embed: Parser, with_options: bool) -> None:
    embed.add_argument("path", metavar="PATH", help="a run folder, or a model in any format that is read")
    embed.add_argument("images", metavar="IMAGES", help="a folder of images, a text file with a path on each line, or tar shards")
    embed.add_argument("--out", required=True, metavar="FILE", help="a new file that ends with .safetensors or .parquet")
    if with_options:
        from .embed_options import add_options

        add_options(embed)


def _add_export(export: Parser) -> None:
    export.add_argument("path", metavar="PATH", help="a run folder, or a model in any format that is read")
    export.add_argument("--format", required=True, metavar="FORMAT", help="amradio, torchhub, hf, transformers, timm or onnx")
    export.add_argument("--out", required=True, metavar="PATH", help="a new file or folder; nothing is overwritten")
    export.add_argument("--heads", metavar="A,B", help="heads to include; default: all that the format can hold")
    export.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights; default: as they are")
    export.add_argument("--image-size", type=int, metavar="N", help="px, for a format of one fixed size")
    export.add_argument("--spectral", action="store_true", help="torchhub: linear layers in the form of spectral reparametrisation")


def _add_small(verb: Callable[[str, str, str], Parser]) -> None:
    _add_report(verb("report", "one page about runs: curves, tables, pictures", "amradio report runs/first --out report.html"))
    doctor = verb("doctor", "what this machine can do, and what is missing", "amradio doctor")
    doctor.add_argument("--json", action="store_true", help="print the same as JSON")
    push = verb("push", "upload a model folder to the hub; without --yes only say what would go", "amradio push runs/first me/student")
    push.add_argument("path", metavar="PATH", help="a run folder, or an exported model folder")
    push.add_argument("name", metavar="OWNER/NAME", help="on the hub; created where it is missing")
    push.add_argument("--yes", action="store_true", help="upload; nothing leaves this machine without it")
    push.add_argument("--private", action="store_true", help="create a private repository")
    schema = verb("schema", "JSON Schema of recipes of all kinds and of evaluation files, for editors", "amradio schema recipe")
    schema.add_argument("of", nargs="?", choices=("recipe", "evaluation", "detection", "vlm"), default="recipe", help="default: recipe")
    completion = verb("completion", "a script that completes verbs and options in a shell", "amradio completion bash")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _add_show(show: Parser) -> None:
    show.add_argument("path", metavar="PATH", help="a run folder, or a model in any format that is read")
    show.add_argument(
        "images", nargs="+", metavar="IMAGES", help="pictures, a folder of images, a text file with a path on each line, or tar shards"
    )
    show.add_argument("--out", required=True, metavar="DIR", help="a folder for the PNG files and the page index.html")
    show.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="a heat map for each")
    show.add_argument("--click", nargs=2, type=float, action="append", default=[], metavar=("X", "Y"), help="a mask; px; may be repeated")
    show.add_argument("--box", nargs=4, type=float, action="append", default=[], metavar=("X0", "Y0", "X1", "Y1"), help="a mask; px")
    show.add_argument(
        "--size", type=int, metavar="N", help="px of the short side at which the student sees them; default: as it was trained"
    )
    show.add_argument("--everywhere", action="store_true", help="the distinct masks of a grid of clicks")
    show.add_argument(
        "--neighbours",
        nargs=2,
        metavar=("FILE", "IMAGES"),
        help="nearest images of a set: a file that `amradio embed` wrote with this model, and the images that it was given",
    )


def _add_demo(demo: Parser) -> None:
    demo.add_argument("path", metavar="PATH", help="a run folder, or a model in any format that is read")
    demo.add_argument("images", nargs="*", default=[], metavar="IMAGES", help="pictures to choose from, as for `amradio show`")
    demo.add_argument("--port", type=int, default=7860, metavar="N", help="of this machine; 0 for any that is free; default: 7860")


def _add_report(report: Parser) -> None:
    report.add_argument("paths", nargs="+", metavar="RUN", help="run folders, finished or not; several are compared")
    report.add_argument("--out", default="report.html", metavar="FILE", help="the page; default: report.html")


def _add_compare(compare: Parser) -> None:
    compare.add_argument("paths", nargs="+", metavar="RUN", help="two run folders or more, finished or not")
    compare.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="RUN",
        help="say whether distillation helps: `scratch` (the same student at step 0), or a run for each seed; one RUN is enough then",
    )
    compare.add_argument("--json", action="store_true", help="print the same as JSON")
