"""`amradio demo`: what the page shows equals what the model answers; who may reach it; and both pages in a real browser."""

import contextlib
import importlib.util
import json
import re
import time
import urllib.error
import urllib.request

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import amradio.commands.demo as command
from amradio.__main__ import main
from amradio.commands.report import report
from amradio.demo.address import bind
from amradio.demo.explorer import LONGEST_SIDE, Explorer
from amradio.errors import UserError
from amradio.formats.model_folder import write_folder
from amradio.heads import MlpHeadSettings
from amradio.model import Model
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students import VitSettings
from amradio.teachers.from_head import find
from browser import WAIT, chromium, console_errors
from made_runs import make_run
from model_folders import NOTES
from processes import ignore_warnings, start


@pytest.fixture(scope="module")
def explorer(pictures):
    """A random student of the embedded CLIP and SAM, with both teachers and three pictures."""
    torch.manual_seed(0)
    cards = {name: {"type": "embedded", "source": f"embedded {name}"} for name in ("clip", "sam")}
    teachers = {name: find(name, card).freeze() for name, card in cards.items()}

    def part(dim):
        return None if dim is None else HeadPart(head=MlpHeadSettings(hidden_dim=24, num_inner=1), dim=dim)

    heads = {
        name: HeadConfig(summary=part(teacher.summary_dim), spatial=part(teacher.spatial_dim), slot=0, teacher=cards[name])
        for name, teacher in teachers.items()
    }
    student = VitSettings(dim=32, depth=1, num_heads=2, patch_size=8, max_image_size=64)
    config = NetworkConfig(student=student, num_summaries=1, heads=heads, image_size=64)
    some = sorted(pictures.rglob("*.jpg"))[:3]
    return Explorer(Model(config, config.build()), teachers, [(path.name, path) for path in some])


def test_answers_equal_those_of_the_model(explorer):
    model, (name, *others) = explorer.model, explorer.gallery
    seen = explorer.open(name)
    height, width = seen.image.shape[-2:]
    for number, click in enumerate([(2.0, 3.0), (width - 1.0, height - 1.0)], 1):
        drawn, note = explorer.click(seen, click)
        assert note.count("predicted IoU") == number
    wanted = model.masks("sam")(seen.image, points=[list(click) for click in seen.clicks])
    assert drawn.size == (width, height)
    assert f"click 2: predicted IoU {float(wanted.scores[1, 0]):.2f}" in note
    texts = ["a red disc", "grass"]
    assert [f"text '{text}'" in panel.title for text, panel in zip(texts, explorer.heat_maps(seen, texts, 64), strict=True)] == [True, True]
    shares = explorer.names(seen, texts, 64)
    summary = model.features(seen.image, "clip", 64)["clip"].summary
    expected = (100 * F.normalize(summary, dim=1) @ model.text("clip")(texts).T).softmax(1)[0]
    assert torch.allclose(torch.tensor(list(shares.values())), expected, atol=1e-5)
    first, *rest = explorer.similar(seen, (2.0, 3.0), 64)
    assert first.title == f"{name}: cosine up to 1.00"
    assert {panel.title.split(":")[0] for panel in rest} == set(others)
    titles = [panel.title for panel in explorer.maps(seen, 64)]
    assert sum("teacher" in title for title in titles) == 2


def test_pictures_are_read_by_the_guarded_reader_and_brought_to_the_size_of_the_page(explorer, tmp_path):
    Image.new("RGB", (3000, 1500), "white").save(tmp_path / "large.png")
    assert explorer.open("large.png", tmp_path / "large.png").image.shape[-2:] == (LONGEST_SIDE // 2, LONGEST_SIDE)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(UserError, match=r"^upload\.jpg: it cannot be read as a picture"):
        explorer.open("upload.jpg", tmp_path / "broken.jpg")
    with pytest.raises(UserError, match="there is no 'other' on this page"):
        explorer.open("other")


def test_what_is_missing_is_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["demo", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "amradio demo: starting\nerror: demo: gradio is not installed; pip install 'amradio[demo]'\n"


def test_a_port_that_is_taken_is_refused():
    with bind(0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UserError, match=r"--port: .* cannot be used .*; give another one, or 0"):
            bind(taken.getsockname()[1])
    with pytest.raises(UserError, match="70000 cannot be used"):
        bind(70_000)


@pytest.fixture(scope="module")
def address(explorer, pictures, tmp_path_factory):
    """Where `amradio demo` serves the page while the tests of this file run."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed (pip install 'amradio[demo]')")
    folder = tmp_path_factory.mktemp("demo")
    write_folder(folder / "student", explorer.model.config, explorer.model.network, NOTES)
    words = ("demo", folder / "student", *sorted(pictures.rglob("*.jpg"))[:3], "--port", "0")
    running = start(*words, folder=folder / "printed", prelude=ignore_warnings, TMPDIR=str(folder))
    running.wait_for("Ctrl-C ends it")
    yield re.search(r"http://127\.0\.0\.1:\d+", (folder / "printed" / "output.txt").read_text())[0]
    running.send()
    ended = running.wait()
    assert ended.code == 143, ended
    assert "Traceback" not in ended.errors
    assert not list(folder.glob("amradio-demo-*")), "uploads are gone"


@pytest.mark.slow
def test_the_server_answers_this_machine_alone_and_loads_nothing_from_elsewhere(address):
    def ask(path="", data=None, **headers):
        try:
            with urllib.request.urlopen(urllib.request.Request(address + path, data, headers)) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    code, headers, page = ask()
    assert code == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "connect-src 'self';" in headers["content-security-policy"]
    assert "fonts.googleapis" not in page
    assert ask(Host="example.org")[0] == 400
    assert json.loads(ask("/config")[2])["analytics_enabled"] is False
    upload = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n' + b"0" * (51 * 2**20) + b"\r\n--x--\r\n"
    assert ask("/gradio_api/upload", upload, **{"Content-Type": "multipart/form-data; boundary=x"})[0] == 413


@pytest.fixture(scope="module")
def browser():
    """One for all pages."""
    with chromium() as opened:
        yield opened


def wait_for(browser, found):
    """What `found` returns as soon as that is true; what is not there yet, or is just being drawn anew, is waited for."""
    from selenium.common.exceptions import StaleElementReferenceException

    end, result = time.monotonic() + WAIT, None
    while not result:
        with contextlib.suppress(IndexError, StaleElementReferenceException):
            result = found()
        assert time.monotonic() < end, browser.find_element("css selector", "body").text
        time.sleep(0.05)
    return result


@pytest.mark.slow
def test_in_a_browser_a_click_gives_a_mask_a_text_a_map_and_a_broken_file_a_notice(address, browser, pictures, tmp_path):
    def find(css):
        return browser.find_elements("css selector", css)

    browser.get(address)
    wait_for(browser, lambda: find("#upload input[type=file]"))[0].send_keys(str(min(pictures.rglob("*.jpg"))))
    picture = wait_for(browser, lambda: [image for image in find("#picture img") if image.rect["width"] > 50])[0]
    before = picture.get_attribute("src")
    wait_for(browser, lambda: len(find("#maps img")) == 5)  # the backbone, two heads, two teachers
    picture.click()
    wait_for(browser, lambda: "click 1: predicted IoU" in find("#answer")[0].text)
    assert find("#picture img")[0].get_attribute("src") != before
    find("#texts textarea")[0].send_keys("a red disc, grass")
    find("#ask")[0].click()
    wait_for(browser, lambda: len(find("#drawn img")) == 2)
    wait_for(browser, lambda: "grass" in find("#names")[0].text)
    find("#does input")[1].click()
    find("#picture img")[0].click()
    wait_for(browser, lambda: len(find("#drawn img")) == 3)
    clicked = wait_for(browser, lambda: re.search(r"the one at \((\d+), (\d+)\)", find("#answer")[0].text))
    x, y = map(int, clicked.groups())
    with Image.open(min(pictures.rglob("*.jpg"))) as opened:
        assert abs(x - opened.width / 2) <= 2, "selenium clicks into the middle, wherever and however large the picture is drawn"
        assert abs(y - opened.height / 2) <= 2
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    find("#upload button[aria-label=Clear]")[0].click()
    wait_for(browser, lambda: find("#upload input[type=file]"))[0].send_keys(str(tmp_path / "broken.jpg"))
    notice = wait_for(browser, lambda: find(".toast-body")[0].text)
    assert "broken.jpg: it cannot be read as a picture" in notice
    assert str(tmp_path) not in notice
    assert console_errors(browser) == []


@pytest.mark.slow
def test_in_a_browser_the_charts_of_a_report_are_drawn_and_its_tables_sorted(recipe, tmp_path, browser):
    page = report(make_run(recipe(), tmp_path / "a").path, out=tmp_path / "r.html")
    browser.get(page.as_uri())
    charts = browser.find_elements("css selector", "figure svg")
    assert len(charts) >= 5
    for chart in charts:
        assert chart.get_attribute("aria-label")
        several = [line for line in chart.find_elements("css selector", "polyline") if " " in line.get_attribute("points")]
        assert all(line.rect["width"] > 50 for line in several)
        assert all(dot.rect["width"] > 3 for dot in chart.find_elements("css selector", "circle"))
    table = browser.find_elements("css selector", "table.sortable")[0]
    heading = table.find_elements("css selector", "th button")[1]
    for direction in ("descending", "ascending"):
        heading.click()
        cells = table.find_elements("css selector", "tbody tr td:nth-child(2)")
        values = [float(cell.get_attribute("data-value")) for cell in cells if cell.get_attribute("data-value")]
        assert values == sorted(values, reverse=direction == "descending")
        assert table.find_element("css selector", f"th[aria-sort={direction}]").text == heading.text
    assert console_errors(browser) == []
