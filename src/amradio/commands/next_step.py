"""The last line of a command: what to do next."""

import argparse
import shlex

from ..console import note


def suggest(options: argparse.Namespace) -> None:
    """Prints on stderr what leads on from a command that ended well; nothing where the output is JSON, or ends with what to do itself."""
    if getattr(options, "json", None) in (None, False):
        text = next_step(options)
        if text:
            note(f"Next: {text}")


def next_step(options: argparse.Namespace) -> str:
    """A command, or what to open; empty where there is nothing to suggest."""
    verb = options.verb
    if verb == "distill":
        return "the same command without --dry-run" if options.dry_run else ""
    if verb == "evaluate":
        return f"amradio show {_word(options.path)} IMAGES --out shown"
    if verb == "embed":
        images = _word(options.images)
        return f"amradio show {_word(options.path)} IMAGE --out shown --neighbours {_word(options.out)} {images}"
    if verb in ("show", "report"):
        page = f"{options.out.rstrip('/')}/index.html" if verb == "show" else options.out
        return f"open {_word(page)} in a browser"
    if verb == "compare":
        return f"amradio report {' '.join(map(_word, options.paths))} --out comparison.html"
    return {"doctor": "amradio quickstart"}.get(verb, "")


def _word(text: object) -> str:
    return shlex.quote(str(text))
