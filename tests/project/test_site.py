"""The documents on their way into the site. The whole site is built, with warnings as errors, by `make check`."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="the site needs amradio[docs]")

from PIL import Image, ImageChops, ImageStat

from amradio.yaml12 import parse_yaml
from browser import WAIT, chromium, console_errors

ROOT = Path(__file__).parents[2]
CONFIG = parse_yaml((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), "mkdocs.yml")


def tool_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return tool_of("site_hooks")


@pytest.mark.parametrize(
    ("page", "link", "written"),
    [
        ("design.md", "[task](../src/amradio/distillation/task.py)", "task"),
        ("design.md", "[the task](../src/amradio/distillation/task.py)", "the task (`src/amradio/distillation/task.py`)"),
        ("models.md", "[first steps](../README.md#install)", "[first steps](index.md#install)"),
        ("tutorials/index.md", "[x](../../README.md)", "[x](../index.md)"),
        ("tutorials/index.md", "[choosing](../choosing.md#student)", "[choosing](../choosing.md#student)"),
        ("index.md", "[starter.yaml](src/amradio/recipes/starter.yaml)", "starter.yaml"),
        ("index.md", "[page](choosing.md), [here](#export)", "[page](choosing.md), [here](#export)"),
        ("index.md", "![picture](images/overview.png)", "![picture](images/overview.png)"),
        ("comparison.md", "[other](https://example.org/a.md)", "[other](https://example.org/a.md)"),
    ],
)
def test_links_that_leave_the_documents_become_names(page, link, written, hooks):
    assert hooks.on_page_markdown(link, SimpleNamespace(file=SimpleNamespace(src_uri=page))) == written


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/]+\.md", str(CONFIG["nav"])))
    assert listed == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} | {"index.md"}


def test_the_site_asks_for_nothing_from_elsewhere():
    assert CONFIG["theme"]["font"] is False
    assert not {"site_url", "repo_url", "extra_javascript", "copyright"} & CONFIG.keys()
    assert all((ROOT / "docs" / file).is_file() for file in (*CONFIG["extra"]["polyfills"], *CONFIG["extra_css"]))
    assert "offline" not in CONFIG["plugins"], "it loads a script from the network"
    assert not [path for path in (ROOT / "docs").rglob("*.md") if re.search(r"!\[[^\]]*\]\(https?:", path.read_text(encoding="utf-8"))]


@pytest.mark.slow
def test_the_site_is_searched_from_the_disk(tmp_path):
    """Browsers start no worker for a page that is a file, so the search needs docs/site/search_from_disk.js and an index as a script."""
    with chromium() as browser:
        build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
        subprocess.run(build, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
        for page in ("index.html", "tutorials/zero_shot.html"):
            browser.get((tmp_path / page).as_uri())
            browser.execute_script("document.querySelector('[data-md-toggle=search]').click()")
            browser.execute_script("document.querySelector('.md-search__input').focus()")
            browser.switch_to.active_element.send_keys("mosaics")
            end = time.monotonic() + WAIT
            while not (links := browser.find_elements("css selector", ".md-search-result__link")):
                assert time.monotonic() < end, page
                time.sleep(0.1)
            assert any("/recipes.html" in link.get_attribute("href") for link in links)
            fetched = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
            assert not [address for address in fetched if not address.startswith(("file:", "data:"))]
            assert console_errors(browser) == []


def test_the_readme_fits_on_some_screens_and_begins_with_a_picture():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert lines[2].startswith("![")


@pytest.mark.slow
def test_the_picture_of_the_readme_is_what_its_command_draws(tmp_path, monkeypatch):
    tool = tool_of("make_pictures")
    monkeypatch.setattr("sys.argv", ["make_pictures.py", "--out", str(tmp_path)])
    tool.main()
    with Image.open(tmp_path / "overview.png") as drawn, Image.open(ROOT / "docs" / "images" / "overview.png") as committed:
        assert drawn.size == committed.size
        difference = ImageStat.Stat(ImageChops.difference(drawn.convert("RGB"), committed.convert("RGB"))).mean
    assert max(difference) < 2  # of 255: rounding on another machine
