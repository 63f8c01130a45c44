"""`amradio report`: the page's charts, tables, marks and escapes."""

import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from amradio import distill
from amradio.__main__ import main
from amradio.commands.report import report
from amradio.data.folder import FolderSettings
from amradio.environment import commit
from amradio.image_input import one_picture
from amradio.report.charts import COLOURS, line_chart, nice_ticks, styles
from amradio.report.page import STYLE
from amradio.run_folder import RunFolder, Series
from made_runs import make_run


@pytest.fixture
def run(recipe, tmp_path):
    return make_run(recipe(), tmp_path / "a", score=20.0).path


def test_one_run(run, tmp_path, capsys):
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    for title in ("Loss of the step", "Agreement in training", "Agreement on held-out images", "Learning rate", "Speed", "Shares of time"):
        assert f"<h3>{title}</h3>" in page
    assert '<span class="bad">!20</span>' in page, "below the floor"
    assert "few images &amp; &lt;b&gt;many&lt;/b&gt; words" in page, "a warning of the log is escaped"
    assert "0123456789abcdef" in page
    assert "torch 2.8.0" in page
    assert "fedcba9876543210" in page
    assert "24 images in &lt;pictures&gt;" in page
    assert "32 x 48 px" in page
    assert "summary per_channel" in page
    assert "Changed keys" not in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "nothing is loaded from elsewhere"
    assert page.count("aria-sort") > 0


def test_several_runs_are_compared(run, recipe, tmp_path, capsys):
    other = make_run(recipe("optimizer.learning_rate=0.5"), tmp_path / "b", cosine=0.9)
    assert main(["report", str(run), str(other.path), f"out={tmp_path / 'r.html'}"]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "optimizer.learning_rate" in page.split("Curves")[0]
    assert "a: loss: 1" in page
    assert "b: loss: 1" in page
    assert '<span class="good">*0.9</span>' in page


DETECTOR = """
model: runs/student
backbone: {type: lora}
detector: {type: mask_rcnn}
schedule: {epochs: 2.0}
"""
VLM = "{model: runs/student, language_model: a/language-model, alignment: {}, instruction: {}}"


@pytest.mark.parametrize(
    ("config", "metrics", "about", "drawn"),
    [
        (
            DETECTOR,
            [{"loss": 1.0, "rpn_box": 0.25, "box": 0.5, "mask": 0.125}, {"val/box_ap": 31.5, "val/mask_ap50": 55.0, "val/box_ar1": 9.0}],
            "a mask_rcnn detector on runs/student, backbone lora; 40 steps",
            {"Loss of the step": {"loss: 1"}, "Loss by part": {"rpn_box: 0.25", "box: 0.5", "mask: 0.125"}}
            | {"Average precision on held-out images": {"box_ap: 31.5", "mask_ap50: 55"}},
        ),
        (
            VLM,
            [{"alignment/loss": 3.0, "alignment/learning_rate": 0.5}, {"instruction/loss": 2.0, "instruction/learning_rate": 0.25}],
            "a vision-language model of runs/student and a/language-model; 40 steps",
            {"Loss by part": {"alignment: 3", "instruction: 2"}, "Learning rate": {"alignment: 0.5", "instruction: 0.25"}},
        ),
    ],
    ids=["detector", "vlm"],
)
def test_a_detector_and_a_vision_language_model_have_their_page(config, metrics, about, drawn, tmp_path, capsys):
    run = RunFolder(tmp_path / "trained")
    run.write("config.yaml", config)
    run.write("metrics.jsonl", "".join(json.dumps({"step": 40} | line) + "\n" for line in metrics))
    run.write("evaluations/step_000000040/detection.json", json.dumps({"box_ap": 31.5, "box_ap50": 60.0}))
    assert main(["report", str(run.path), "--out", str(tmp_path / "r.html")]) == 0, capsys.readouterr().err
    page = (tmp_path / "r.html").read_text()
    assert about in page
    charts = {title: set(re.findall("</i>(.*?)</li>", rest)) for title, rest in re.findall("<figure><h3>(.*?)</h3>(.*?)</figure>", page)}
    assert charts == drawn
    assert "box ap50, detector (%)" in page
    assert config.strip().splitlines()[0] in page, "the recipe as it was written"


@pytest.mark.parametrize("largest", [1e-5, 1.3e-3, 0.9, 99.0, 1e5, 3e7])
def test_numbers_of_the_axis_do_not_touch_its_title(largest):
    chart = ET.fromstring(line_chart("x", "a unit", {"a": Series([0, 1], [0.13 * largest, largest])}))
    texts = list(chart.iter("text"))
    (title,) = (text for text in texts if text.get("transform"))
    left = min(float(text.attrib["x"]) - 6.3 * len(text.text or "") for text in texts if text.get("text-anchor") == "end")
    assert left > float(title.attrib["x"]) + 3, "11 px: 6.3 px a character"


@pytest.mark.slow
def test_a_run_records_its_data_and_commit_and_draws_held_out_images(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("amradio.environment.commit", lambda: "0123abcd-dirty")
    folder = distill(recipe("stages.0.steps=1", "evaluate.every=1", "teachers.dino=null", "engine.report=true"))
    run = RunFolder(folder)
    assert run.environment()["commit"] == "0123abcd-dirty"
    facts = run.data()
    assert facts.keys() == {"data.train", "data.val"}
    assert facts["data.train"] == facts["data.val"], "the same folder"
    assert [path.name for path in run.pictures()] == ["first_batch.png", "held_out_clip.png", "held_out_sam.png"]
    drawn = one_picture(folder / "images" / "held_out_sam.png")
    assert drawn.shape[-1] > 3 * 256, "the picture, the teacher's map and the student's"
    assert "teacher and student in the same colours: held out sam" in (folder / "report.html").read_text()


def test_a_fingerprint_changes_with_a_name_and_not_with_the_place(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "a")
    first, second = (FolderSettings(path=str(path)).build() for path in (pictures, tmp_path / "a"))
    assert first.fingerprint() == second.fingerprint()
    file = min((tmp_path / "a").rglob("*.jpg"))
    file.rename(file.with_name("renamed.jpg"))
    assert FolderSettings(path=str(tmp_path / "a")).build().fingerprint() != first.fingerprint()
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?|None", str(commit()))


@pytest.mark.slow
def test_a_run_ends_with_its_page_unless_that_is_switched_off_or_a_file_is_damaged(recipe, tmp_path, capsys):
    words = ("stages.0.steps=1", "evaluate.every=null", "data.val=null", "engine.report=true")
    folder = distill(recipe(*words))
    assert "Loss of the step" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    distill(recipe(*words, "engine.report=false"))
    assert not (folder / "report.html").exists()
    (folder / "evaluations" / "step_000000001").mkdir(parents=True)
    (folder / "evaluations" / "step_000000001" / "knn.json").write_text("{")
    distill(recipe(*words))
    assert "warning: " in capsys.readouterr().out
    assert not (folder / "report.html").exists()


def test_agreement_over_sizes(run, tmp_path):
    file = run / "evaluations" / "step_000000012" / "zero-shot.json"
    sizes = {"student/clip": {"32": {"summary_standardized_cosine": 0.512}, "64": {"summary_standardized_cosine": 0.734, "cosine": 0.1}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"details": {"by_size": sizes}}))
    page = report(run, out=tmp_path / "r.html").read_text()
    assert "student/clip summary standardized cosine" in page
    assert '<td class="n" data-value="64.0">64 px</td><td class="n" data-value="0.734">0.734</td>' in page


def test_mistakes(run, tmp_path, capsys):
    assert main(["report", str(run), "--out", str(tmp_path / "r.txt")]) == 2
    assert "give a file that ends with .html" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none"), "--out", str(tmp_path / "r.html")]) == 2
    (run / "images").mkdir()
    (run / "images" / "first_batch.png").write_bytes(b"no picture")
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 2
    assert "first_batch.png: it cannot be read as a picture" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_chart_is_xml_with_a_title_units_and_finite_points_inside_its_frame():
    chart = line_chart("Loss <x>", "nats", {"a": Series([0, 5, 10], [3.0, float("nan"), 1.0]), "none": Series([], [])})
    root = ET.fromstring(chart)
    (line,) = root.iter("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(points) == 2
    assert all(0 <= x <= 360 and 0 <= y <= 230 for x, y in points)
    assert points[0][1] < points[1][1], "larger values are higher up"
    svg = root.find("svg")
    assert svg is not None
    assert svg.attrib["aria-label"] == "Loss <x>, nats, steps 0 to 10; last values: a 1"
    assert [label.text for label in svg.iter("text")][-1] == "nats"
    assert styles([f"loss {number}" for number in range(9)])[-1] == ("#3b82f6", "dashed")
    assert styles(["a: clip", "a: sam", "b: clip", "b: sam"]) == [
        ("#3b82f6", "solid"),
        ("#e4572e", "solid"),
        ("#3b82f6", "dashed"),
        ("#e4572e", "dashed"),
    ], "a colour for each curve, dashes for each run"
    assert styles(["a: loss", "b: loss"]) == [("#3b82f6", "solid"), ("#e4572e", "solid")]
    assert line_chart("x", "y", {"none": Series([1], [float("inf")])}) == ""
    many = ET.fromstring(line_chart("x", "y", {"a": Series(list(range(5000)), [1.0] * 5000)}))
    assert len(next(many.iter("polyline")).attrib["points"].split()) == 300


def test_lines_of_charts_stand_out_from_light_and_dark_cards():
    """WCAG 1.4.11: graphics have a contrast of 3:1 or more."""

    def luminance(colour):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = map(luminance, re.findall(r"--card:(#[0-9a-f]{6})", STYLE))
    for colour in COLOURS:
        assert (light + 0.05) / (luminance(colour) + 0.05) >= 3, f"{colour} on a light page"
        assert (luminance(colour) + 0.05) / (dark + 0.05) >= 3, f"{colour} on a dark page"


@pytest.mark.parametrize(("first", "last"), [(0, 60), (1, 1_700), (50, 300_000), (0, 12_345_678)])
def test_steps_below_the_axis_are_round_between_the_ends_and_do_not_touch(first, last):
    chart = ET.fromstring(line_chart("x", "a unit", {"a": Series([first, last], [0.0, 1.0])}))
    labels = [text for text in chart.iter("text") if text.attrib["y"] == str(230 - 18)]
    assert len(labels) >= 3
    assert {f"{first:,}", f"{last:,}"} <= {label.text for label in labels}
    shift = {"start": 0.0, "middle": 0.5, "end": 1.0}
    spans = []
    for label in labels:
        width = 6.3 * len(label.text or "")
        left = float(label.attrib["x"]) - shift[label.attrib["text-anchor"]] * width
        spans.append((left, left + width))
    spans.sort()
    assert all(before < after for (_, before), (after, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.013, 0.97), (1e-9, 1e-3), (5.0, 5.0), (0.0, 0.0), (120, 98_000)])
def test_ticks_are_round_and_enclose_what_is_drawn(low, high):
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
