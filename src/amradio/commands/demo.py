"""`amradio demo`: a page on this machine on which a model answers about pictures."""

import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..console import PHASES, print_text
from ..demo.address import HOST, bind
from ..errors import UserError, together
from ..files import user_path
from ..model import load
from .show import find_teachers, first_pictures

PORT = 7860
"""Gradio's usual one."""


def demo(path: str | Path, images: Sequence[str | Path] = (), *, port: int = PORT) -> None:
    """Serves the page at http://127.0.0.1:PORT until it is stopped (Ctrl-C).

    path: a run folder, whose teachers are shown beside the heads, or a model in any format that is read, whose teachers are looked up on
    this machine. images: as of `amradio show`; they can be chosen on the page, and similar patches are looked up in them. port: 0 for any
    that is free. Raises UserError with what is wrong before anything is served.
    """
    if find_spec("gradio") is None:
        raise UserError("demo: gradio is not installed; pip install 'amradio[demo]'")
    with PHASES.phase(f"reading {path}"):
        model, gallery = together(lambda: load(path), lambda: first_pictures(images) if images else [])
    teachers = find_teachers(user_path(path), model)
    with bind(port) as listening, tempfile.TemporaryDirectory(prefix="amradio-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads and of pictures that are shown
        with PHASES.phase("building the page"):
            from ..demo.explorer import Explorer
            from ..demo.page import build_page
            from ..demo.server import make_server

            server = make_server(build_page(Explorer(model, teachers, gallery), Path(path).name))
        print_text(f"http://{HOST}:{listening.getsockname()[1]} shows the page, on this machine alone; Ctrl-C ends it")
        server.run(sockets=[listening])
