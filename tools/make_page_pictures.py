"""Makes the pictures of report, compare, show and demo in docs/images, from finished quickstart runs, with headless Chromium.

    .venv/bin/amradio quickstart out=runs/quickstart
    .venv/bin/amradio quickstart out=runs/shorter stages.0.steps=400
    .venv/bin/python tools/make_page_pictures.py runs/quickstart runs/shorter

With `--review FOLDER` it writes instead every page at 390 and 1,440 px, light and dark, to be looked at.
Needs `pip install 'amradio[dev]'` and Debian's chromium and chromium-driver.
"""

import argparse
import contextlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

from amradio.commands.compare import compare
from amradio.commands.report import report
from amradio.commands.show import show
from amradio.data.scenes import Scenes
from amradio.model.showing import Prompts

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images"
LARGEST = 300_000
"""Bytes of a picture."""
TEXTS = ["a red disc", "grass"]
REVIEWED = [(width, scheme) for width in (390, 1440) for scheme in ("light", "dark")]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def look_as(browser: Any, width: int, scheme: str, height: int = 1000) -> None:
    """The next pages are seen in a window of `width` px, light or dark."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def save(browser: Any, file: Path, height: int | None = None) -> None:
    """The page from its top, `height` px of it, all where that is None; as a palette of 256 colours where it is too large otherwise."""
    import base64

    size = browser.execute_script("return [document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": size[0], "height": min(height or size[1], size[1], 6000), "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as picture:
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    assert height is None or file.stat().st_size < LARGEST, f"{file} has {file.stat().st_size} bytes"
    print(file, file.stat().st_size)


def wait_for(browser: Any, css: str, is_there: Callable[[list[Any]], Any]) -> Any:
    end = time.monotonic() + 120
    while not (found := is_there(browser.find_elements("css selector", css))):
        assert time.monotonic() < end, css
        time.sleep(0.1)
    return found


def write_scenes(folder: Path, count: int = 4) -> list[Path]:
    """Scenes of a world that no run has seen."""
    scenes = Scenes(count, seed=5, image_size=256)
    files = []
    for number in range(count):
        files.append(folder / f"scene_{number}.png")
        Image.fromarray(scenes.image(number)).save(files[-1])
    return files


def terminal_page(folder: Path, run: Path, other: Path) -> Path:
    """What `amradio compare` prints, as a page."""
    os.environ["COLUMNS"] = "110"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        compare(run, other)
    command = f"$ amradio compare runs/{run.name} runs/{other.name}\n"
    style = "body{margin:0;padding:16px;background:#14171b;color:#e6e9ed}pre{font:13px/1.35 ui-monospace,monospace;margin:0}"
    page = folder / "compare.html"
    page.write_text(f"<meta charset=utf-8><style>{style}</style><pre>{html.escape(command + printed.getvalue())}</pre>", encoding="utf-8")
    return page


@contextlib.contextmanager
def served(folder: Path, run: Path, images: list[Path]) -> Iterator[str]:
    """The address of `amradio demo`."""
    words = [sys.executable, "-m", "amradio", "demo", str(run), *map(str, images), "--port", "0"]
    with (folder / "demo.log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT) as server:
        end = time.monotonic() + 300
        while not (match := re.search(r"http://127\.0\.0\.1:\d+", (folder / "demo.log").read_text())):
            assert server.poll() is None, (folder / "demo.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        try:
            yield match[0]
        finally:
            server.terminate()


def use_demo(browser: Any, address: str, image: Path) -> None:
    """Drops a picture, clicks into it and asks for texts."""
    browser.get(address)
    wait_for(browser, "#upload input[type=file]", bool)
    browser.find_element("css selector", "#upload input[type=file]").send_keys(str(image))
    wait_for(browser, "#maps img", lambda found: len(found) > 3)
    picture = wait_for(browser, "#picture img", lambda found: [one for one in found if one.rect["width"] > 100])[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    webdriver.ActionChains(browser).move_to_element(picture).click().perform()
    wait_for(browser, "#answer", lambda found: found and "predicted IoU" in found[0].text)
    browser.find_element("css selector", "#texts textarea").send_keys(", ".join(TEXTS))
    button = browser.find_element("css selector", "#ask")
    browser.execute_script("arguments[0].click()", button)
    wait_for(browser, "#drawn img", lambda found: len(found) == len(TEXTS))
    browser.execute_script("window.scrollTo(0, 0)")
    time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--review", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        images = write_scenes(folder)
        pages = {
            "report": report(options.run, out=folder / "report.html"),
            "reports": report(options.run, options.other, out=folder / "reports.html"),
            "show": show(options.run, images[:1], folder / "shown", prompts=Prompts(TEXTS, [(128.0, 60.0)], (), everywhere=True), size=128),
            "compare": terminal_page(folder, options.run, options.other),
        }
        with served(folder, options.run, images) as address:
            for width, scheme in REVIEWED if options.review else [(1200, "light")]:
                look_as(browser, width, scheme)
                for title, page in pages.items():
                    if options.review or title != "reports":
                        browser.get(page.as_uri())
                        file = options.review / f"{title}_{width}_{scheme}.png" if options.review else OUT / f"{title}.png"
                        save(browser, file, None if options.review else {"report": 1500, "show": 1700}.get(title, 1100))
                use_demo(browser, address, images[0])
                file = options.review / f"demo_{width}_{scheme}.png" if options.review else OUT / "demo.png"
                save(browser, file, None if options.review else 1500)
                print(json.dumps([entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]))


if __name__ == "__main__":
    main()
