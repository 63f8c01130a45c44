#!/usr/bin/env python
"""Writes the pages of docs/tutorials from the notebooks in examples/, and their pictures by running them.

    python tools/make_tutorials.py               # the pages
    python tools/make_tutorials.py --pictures    # runs the notebooks as well (a minute), and writes docs/images/NAME.png

A notebook has no stored outputs; the last picture that it draws is that of its page.
"""

import argparse
import base64
import io
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES, PAGES, IMAGES = ROOT / "examples", ROOT / "docs" / "tutorials", ROOT / "docs" / "images"
ORDER = ("similarity_search", "linear_classifier", "click_to_mask", "text_heat_map", "zero_shot", "onnx_deployment")
"""As on the page that lists them."""
WIDTH = 880
SECONDS = 600
"""That a cell may take."""


def read(name: str) -> NotebookNode:
    """A notebook of examples/."""
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def page(name: str) -> str:
    """The page of a notebook: its texts, its code, and its picture below the title."""
    parts = []
    for number, cell in enumerate(read(name).cells):
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        if not number:
            parts.append(f"![{title(name)}: what the notebook draws](../images/{name}.png)")
            parts.append(f"As a notebook: [examples/{name}.ipynb](../../examples/{name}.ipynb), which runs as it is.")
    return "\n\n".join(parts) + "\n"


def title(name: str) -> str:
    """The heading of a notebook."""
    return read(name).cells[0].source.splitlines()[0].removeprefix("# ")


def index() -> str:
    """The page that lists all tutorials."""
    lines = [
        "# Tutorials",
        "",
        "Each is a notebook in [examples](../../examples) that runs in the tests, on the student that comes with the package.",
        "",
    ]
    for name in ORDER:
        about = read(name).cells[0].source.split("\n\n")[1].replace("\n", " ")
        lines += [f"## [{title(name)}]({name}.md)", "", about, ""]
    return "\n".join(lines)


def run(notebook: NotebookNode, kernel: KernelManager, folder: Path, check: str = "") -> NotebookNode:
    """Runs a notebook in a kernel, without the names of an earlier one, and returns it with its outputs.

    check: code that is run behind it. Raises CellExecutionError where a cell fails.
    """
    notebook.cells = [new_code_cell("%reset -f"), *notebook.cells, new_code_cell(check)]
    client = NotebookClient(notebook, km=kernel, timeout=SECONDS, resources={"metadata": {"path": str(folder)}})
    try:
        return client.execute()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()


def last_picture(notebook: NotebookNode) -> bytes:
    """The last PNG among the outputs."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return base64.b64decode([output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})][-1])


def small(png: bytes) -> Image.Image:
    """A picture as it is committed: `WIDTH` px wide at most, of 192 colours."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    return picture.quantize(192)


def outdated() -> dict[Path, str]:
    """{page: what it should be} of those that are not as their notebook."""
    wanted = {PAGES / f"{name}.md": page(name) for name in ORDER} | {PAGES / "index.md": index()}
    return {path: text for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text}


def main() -> None:
    """Writes the pages and, where asked for, the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true")
    given = parser.parse_args()
    PAGES.mkdir(parents=True, exist_ok=True)
    for path, text in outdated().items():
        path.write_text(text, encoding="utf-8")
    if not given.pictures:
        return
    kernel = KernelManager()
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in ORDER:
                small(last_picture(run(read(name), kernel, Path(folder)))).save(IMAGES / f"{name}.png", optimize=True)
                print(IMAGES / f"{name}.png")
        finally:
            kernel.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()
