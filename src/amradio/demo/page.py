"""The page of `amradio demo`, of gradio's components: pictures come in as files, which the guarded reader decodes and gradio never does."""

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported and when components are made
import gradio as gr

from ..drawing.figures import figure
from ..drawing.panels import Panel
from ..errors import UserError
from .explorer import Explorer, Seen, picture_of

MASKS, SIMILAR = "the mask of what is there", "patches that are similar"
ENDINGS = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"]
MOST_TEXTS = 16
KEPT = 3600
"""Seconds after which uploads and pictures that were shown are deleted."""
PICTURE = "picture, "
"""How the title of that panel begins."""
ALT = "the picture, with the masks of what was clicked in it"
STYLE = """
.panels{display:flex;flex-wrap:wrap;gap:10px}.panels figure{margin:0;width:min(200px,calc(50% - 5px))}
.panels img{width:100%;height:auto;display:block;border-radius:6px}.panels figcaption{font-size:.85rem;line-height:1.35;padding-top:4px}
#picture img{width:100%;min-height:200px;max-height:70vh;object-fit:contain}
"""
"""The last line enlarges small pictures, so that one can click into them."""


def build_page(explorer: Explorer, name: str) -> gr.Blocks:
    """The whole page. name: of the model, for its title."""
    least, largest, step, first = explorer.sizes
    with gr.Blocks(analytics_enabled=False, title=f"amradio: {name}", delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(f"# What {name} knows\n\nEverything is computed on this machine; no picture leaves it.")
        seen = gr.State(None)
        with gr.Row():
            with gr.Column():
                upload = gr.File(label="Drop a picture here", file_types=ENDINGS, height=120, elem_id="upload")
                chooser = gr.Dropdown(
                    list(explorer.gallery), value=None, label="Or choose one", visible=bool(explorer.gallery), elem_id="chooser"
                )
                shown = gr.Image(
                    interactive=False, format="png", label="Click into the picture", buttons=[], alt_text=ALT, elem_id="picture"
                )
                does = gr.Radio([MASKS, SIMILAR], value=MASKS, label="A click shows", elem_id="does")
                clear = gr.Button("Remove all clicks", size="sm", elem_id="clear")
                texts = gr.Textbox(label="Texts, with commas between them", placeholder="a dog, grass", max_length=2000, elem_id="texts")
                ask = gr.Button("Show texts", variant="primary", elem_id="ask")
                size = gr.Slider(least, largest, first, step=step, label="Input size of the student (px of the short side)", elem_id="size")
            with gr.Column():
                answer = gr.Markdown("Choose a picture, then click into it or type texts.", elem_id="answer")
                drawn = gr.HTML(elem_id="drawn")
                names = gr.Label(label="Names: share among the texts", visible=False, elem_id="names")
        gr.Markdown("## Student and teachers\n\nA head and its teacher share their principal components: equal colours are equal features.")
        maps = gr.HTML(elem_id="maps")
        acts = _Acts(explorer)
        opened = [seen, shown, maps, drawn, names, answer]
        once = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        upload.upload(_answered(acts.open_file), [upload, size], opened, **once)
        chooser.input(_answered(acts.choose), [chooser, size], opened, **once)
        shown.select(_answered(acts.click), [seen, size, does], [seen, shown, drawn, names, answer], **once)
        clear.click(_answered(acts.clear), [seen], [seen, shown, drawn, names, answer], **once)
        for event in (ask.click, texts.submit):
            event(_answered(acts.say), [seen, size, texts], [drawn, names, answer], **once)
        size.release(_answered(acts.resize), [seen, size], [maps], **once)
    return page


class _Acts:
    """What events of the page do: from the values of components to values of components."""

    def __init__(self, explorer: Explorer):
        self.explorer = explorer

    def open_file(self, file: str | None, size: int) -> tuple[Any, ...]:
        if file is None:
            return None, None, "", "", _no_names(), "Choose a picture."
        return self._open(self.explorer.open(Path(file).name, Path(file)), size)

    def choose(self, name: str, size: int) -> tuple[Any, ...]:
        return self._open(self.explorer.open(name), size)

    def _open(self, seen: Seen, size: int) -> tuple[Any, ...]:
        height, width = seen.image.shape[-2:]
        note = f"{seen.name}, shown at {width} x {height} px. Click into it, or type texts."
        return seen, picture_of(seen), _figures(self.explorer.maps(seen, int(size))), "", _no_names(), note

    def click(self, seen: Seen | None, size: int, does: str, event: gr.SelectData) -> tuple[Any, ...]:
        seen = _present(seen)
        x, y = event.index
        if does == MASKS:
            picture, note = self.explorer.click(seen, (float(x), float(y)))
            return seen, picture, "", _no_names(), note
        panels = self.explorer.similar(seen, (float(x), float(y)), int(size))
        return seen, gr.skip(), _figures(panels), _no_names(), f"Patches similar to the one at ({x}, {y}); a dot is on the nearest."

    def clear(self, seen: Seen | None) -> tuple[Any, ...]:
        seen = _present(seen)
        seen.clicks.clear()
        return seen, picture_of(seen), "", _no_names(), "Click into the picture, or type texts."

    def say(self, seen: Seen | None, size: int, text: str) -> tuple[Any, ...]:
        seen = _present(seen)
        texts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))[:MOST_TEXTS]
        if not texts:
            raise UserError("texts: there is none; type what to look for, with commas between several")
        names = self.explorer.names(seen, texts, int(size))
        panels = self.explorer.heat_maps(seen, texts, int(size))
        return (
            _figures(panels),
            gr.Label(names, visible=len(texts) > 1),
            "Cosine of each patch with each text; one range of colours for all.",
        )

    def resize(self, seen: Seen | None, size: int) -> str:
        return "" if seen is None else _figures(self.explorer.maps(seen, int(size)))


def _present(seen: Seen | None) -> Seen:
    if seen is None:
        raise UserError("picture: there is none yet; drop one into the field above")
    return seen


def _figures(panels: Iterable[Panel]) -> str:
    """HTML of pictures with captions; a panel of the picture itself, which is on the page already, is left out."""
    figures = (figure(panel.picture, panel.title) for panel in panels if not panel.title.startswith(PICTURE))
    return f'<div class="panels">{"".join(figures)}</div>'


def _no_names() -> Any:
    return gr.Label(visible=False)


def _answered(act: Callable[..., Any]) -> Callable[..., Any]:
    """The same; what a user can fix is a notice on the page, which stays as it was, without a traceback on the terminal."""

    @functools.wraps(act)
    def call(*values: Any) -> Any:
        try:
            return act(*values)
        except UserError as error:
            gr.Warning("; ".join(error.problems), title="This does not work")
            return gr.skip()

    return call
