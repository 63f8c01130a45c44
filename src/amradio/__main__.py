"""The command line: `amradio <verb> ...`. Each verb is one public Python function, and this only calls it."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import __version__
from .commands.grammar import parse
from .commands.next_step import suggest
from .console import fitted, note, only_results, open_standard_streams, outlive_console
from .errors import UserError
from .interruption import Interruptible, RunStoppedError
from .memory import memory_errors

if TYPE_CHECKING:
    from .recipe import Recipe

NOTHING_WRITTEN = "Nothing was written."
WHEN_STOPPED = {
    "distill": "Run the same command to resume.",
    "quickstart": "Run the same command to resume.",
    "detect": "Run the same command to resume.",
    "vlm": "Run the same command to resume.",
    "embed": "What is done is kept; run the same command to resume.",
    "evaluate": "No results were written.",
    "export": NOTHING_WRITTEN,
    "show": "The pictures that were drawn are kept.",
}
"""What a command that a signal stops tells its user."""
IMMEDIATE = ("teachers", "students", "recipes", "schema", "completion")
"""Verbs that answer at once; all others say that they start, before anything heavy is imported."""


def call(options: argparse.Namespace) -> None:
    """Calls the verb's function; imports it only now, so that help is quick."""
    if options.verb == "distill":
        recipe = _recipe(options.words)
        from .commands import distill

        distill.dry_run(recipe) if options.dry_run else distill.distill(recipe)
    elif options.verb == "detect":
        from .downstream.detection.settings import DetectionRecipe

        detection = DetectionRecipe.load(*options.words)
        from .commands.detect import train_detector

        train_detector(detection)
    elif options.verb == "vlm":
        _vlm(options)
    elif options.verb == "quickstart":
        from .recipe import Recipe
        from .words import only_keys

        only_keys(options.words, "quickstart")
        Recipe.load("quickstart", *options.words)  # a misspelt key is answered before torch is imported
        from .commands.quickstart import quickstart

        quickstart(*options.words)
    elif options.verb == "evaluate":
        from .commands.evaluate import chosen_suite, evaluate

        evaluate(options.path, *options.words, json_file=options.json, benchmarks=chosen_suite(options.suite, options.data))
    elif options.verb == "embed":
        from .commands.embed import embed
        from .commands.embed_options import chosen_options

        embed(options.path, options.images, options.out, **chosen_options(options))
    elif options.verb == "export":
        _export(options)
    elif options.verb in ("show", "demo"):
        _show(options)
    elif options.verb == "report":
        from .commands.report import report

        report(*options.paths, out=options.out)
    elif options.verb == "compare":
        from .commands.compare import compare

        compare(*options.paths, against=options.against, as_json=options.json)
    elif options.verb == "push":
        from .commands.push import push

        push(options.path, options.name, yes=options.yes, private=options.private)
    elif options.verb == "doctor":
        from .commands.doctor import doctor

        doctor(options.json)
    else:
        _list(options)


def _export(options: argparse.Namespace) -> None:
    from .commands.export import export

    heads = None if options.heads is None else [name for name in options.heads.split(",") if name]
    chosen = {"dtype": options.dtype, "image_size": options.image_size, "spectral": options.spectral}
    export(options.path, options.format, options.out, heads=heads, **chosen)


def _vlm(options: argparse.Namespace) -> None:
    if options.action == "export":
        from .commands.vlm import export_vlm, paths_of_export

        export_vlm(*paths_of_export(options.words))
        return
    from .downstream.vlm.settings import VlmRecipe

    recipe = VlmRecipe.load(*options.words)
    from .commands.vlm import train_vlm

    train_vlm(recipe)


def _list(options: argparse.Namespace) -> None:
    from .commands import listings

    if options.verb == "recipes":
        listings.list_recipes(options.name, options.json)
    elif options.verb == "schema":
        listings.print_schema(options.of)
    elif options.verb == "completion":
        listings.print_completion(options.shell)
    else:
        {"teachers": listings.list_teachers, "students": listings.list_students}[options.verb](options.json)


def _show(options: argparse.Namespace) -> object:
    if options.verb == "demo":
        from .commands.demo import demo

        return demo(options.path, options.images, port=options.port)
    from .commands.show import show
    from .model import EmbeddedSet
    from .model.showing import Prompts

    points, boxes = [(x, y) for x, y in options.click], [(a, b, c, d) for a, b, c, d in options.box]
    neighbours = EmbeddedSet.read(*options.neighbours) if options.neighbours else None
    prompts = Prompts(options.text, points, boxes, options.everywhere, neighbours)
    return show(options.path, options.images, options.out, prompts=prompts, size=options.size)


def _recipe(words: Sequence[str]) -> "Recipe":
    """The recipe that the words make; where none of them is a file, the answer to missing keys leads to the shipped ones."""
    from .recipe import Recipe
    from .words import names_file

    try:
        return Recipe.load(*words)
    except UserError as error:
        if any(names_file(word) for word in words) or not any("required and missing" in problem for problem in error.problems):
            raise
        hint = "no recipe is among the words; begin with one that comes with amradio, e.g. starter (`amradio recipes` lists them)"
        raise UserError(*error.problems, hint) from None


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 2 after printing what the user can fix, or 128 + the number of the signal that stopped it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console in ASCII or Latin-1 prints every name
    options = parse(sys.argv[1:] if words is None else words, __version__)
    open_standard_streams()
    is_dry_run = options.verb == "distill" and options.dry_run
    when_stopped = NOTHING_WRITTEN if is_dry_run else WHEN_STOPPED.get(options.verb, "")
    with outlive_console(), only_results(options.quiet), Interruptible(when_stopped, ends_process=words is None) as interruptible:
        try:
            if options.verb not in IMMEDIATE:  # a run's log is on stdout, and so are the results of all others
                has_log = options.verb in ("quickstart", "detect", "vlm") or (options.verb == "distill" and not is_dry_run)
                note(f"amradio {options.verb}: starting", sys.stdout if has_log else sys.stderr)
            return _ended(options)
        except RunStoppedError as stopped:
            return int(stopped.code or 0)
        except KeyboardInterrupt:
            return interruptible.code


def _ended(options: argparse.Namespace) -> int:
    """Calls the verb; the exit code of what it ends with."""
    try:
        with memory_errors():
            call(options)
        suggest(options)
    except UserError as error:
        if options.debug:
            raise
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0 or not error.on_all_processes:
            where = f"error on process {rank}" if rank else "error"
            print(fitted("\n".join(f"{where}: {problem}" for problem in error.problems), sys.stderr), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
