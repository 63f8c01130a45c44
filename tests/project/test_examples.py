"""The notebooks of examples/ run, one after another in one kernel, and their pages are as they are."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("nbclient", reason="the notebooks need amradio[notebooks]")

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "caltech101" / "val"
CHECKS = {
    "similarity_search": "assert hits >= 14, hits",
    "linear_classifier": "assert of_features > of_pixels + 15, (of_features, of_pixels)",
    "click_to_mask": """
assert 0.02 < clicked.masks.float().mean() < 0.6
assert clicked.scores.item() > 0.7
assert Image.open("cut_out.png").mode == "RGBA"
""",
    "text_heat_map": """
centres = [divmod(int(one.argmax()), one.shape[1]) for one in heat_maps]
quarters = [2 * (row >= len(heat_maps[0]) / 2) + (column >= len(heat_maps[0]) / 2) for row, column in centres]
assert quarters == [0, 1, 2, 3], quarters
assert maps.shape == (4, 16, 16)
""",
    "zero_shot": "assert right > 0.85 * len(files), right",
    "onnx_deployment": "assert right >= 7, right\nassert set(answers[0][:1]) <= set(names)",
}
"""Of the names that a notebook leaves, in place of a look at it."""

pytestmark = [pytest.mark.filterwarnings("ignore")]
"""The libraries of notebooks warn of one another; what the notebooks do runs in the kernel."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tutorials", ROOT / "tools" / "make_tutorials.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def kernel(tool: ModuleType) -> Iterator[object]:
    """One for all, as most of a notebook's time is the import of torch."""
    manager = tool.KernelManager()
    yield manager
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)


def test_every_notebook_is_listed_checked_and_without_outputs(tool):
    files = {path.stem for path in (ROOT / "examples").glob("*.ipynb")}
    assert files == set(tool.ORDER) == CHECKS.keys()
    for name in files:
        cells = tool.read(name).cells
        assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")], name


def test_pages_and_pictures_are_those_of_the_notebooks(tool):
    assert tool.outdated() == {}, "run python tools/make_tutorials.py"
    for name in tool.ORDER:
        assert (tool.IMAGES / f"{name}.png").is_file(), "run python tools/make_tutorials.py --pictures"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_notebook(name, tool, kernel, folder):
    ran = tool.run(tool.read(name), kernel, folder, CHECKS[name])
    assert tool.last_picture(ran).startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("click_to_mask", "assert len(files) == 24"),
        ("similarity_search", "assert hits >= 14, hits"),
        ("linear_classifier", "assert len(files) == 24"),
    ],
)
def test_a_notebook_on_photographs(name, check, tool, kernel, folder):
    """Of several sizes, with class names that are not those of scenes; what clicks of the small student give is another matter."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("needs the photographs of ../shared/data/caltech101")
    shutil.rmtree(folder / "photos", ignore_errors=True)
    for group in sorted(PHOTOGRAPHS.iterdir())[:4]:
        for number, path in enumerate(sorted(group.glob("*.jpg"))[:6]):
            (folder / "photos" / group.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "photos" / group.name / f"{number}.jpg")
    notebook = tool.read(name)
    for cell in notebook.cells:
        cell.source = cell.source.replace("order[:100], order[100:]", "order[:16], order[16:]")
    ran = tool.run(notebook, kernel, folder, check)
    assert tool.last_picture(ran).startswith(b"\x89PNG")
