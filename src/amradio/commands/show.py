"""`amradio show`: what a model knows of some pictures, as PNG files and one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..console import PHASES, note, print_text
from ..data.decode import decode
from ..data.full_images import open_images
from ..data.guard import UnreadableError
from ..data.names import is_picture
from ..drawing.figures import figure
from ..drawing.panels import sheet
from ..errors import UserError, shown, together
from ..files import disk_errors, user_path, write_aside
from ..image_input import LARGEST, Picture, one_picture
from ..images import to_float
from ..model import Model, load
from ..model.showing import Prompts, panels
from ..report.page import page, section
from ..run_folder import RunFolder
from ..teachers.base import Teacher
from ..teachers.from_head import find
from ..training import load_teachers

MOST = 24
"""Pictures of a folder that are drawn; the rest is counted."""


def show(
    path: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    prompts: Prompts = Prompts(),  # noqa: B008 - frozen
    size: int | None = None,
) -> Path:
    """Writes a PNG for each picture and `index.html` with all of them into `out`, and returns the path of the page.

    path: a run folder, whose teachers are drawn beside the heads, or a model in any format that is read, whose teachers are looked up on
    this machine. images: a picture, or what `amradio embed` takes, or several of them, of which the first `MOST` pictures are drawn; those
    that cannot be read or drawn are named and left out. out: a folder; nothing in it is overwritten but what an earlier call wrote. size:
    px of the short side at which the student sees pictures; None for the size of its last training. Raises UserError with what is wrong,
    before anything is written, and where no picture could be drawn.
    """
    paths = [images] if isinstance(images, str | Path) else list(images)
    with PHASES.phase(f"reading {path}"):
        checked = together(lambda: _out(out), lambda: first_pictures(paths), lambda: load(path), lambda: _check_size(size))
    folder, chosen, model, _ = checked
    teachers = find_teachers(user_path(path), model)
    parts: list[str] = []
    problems: list[str] = []
    for number, (name, picture) in enumerate(PHASES.progress(chosen, "drawing", len(chosen))):
        try:
            drawn = panels(model, to_float(one_picture(picture)), teachers, prompts, size)
        except UserError as error:
            if len(chosen) == 1:
                raise
            problems.append(f"{shown(name)}: {error.problems[0].removeprefix('image: ')}")
            continue
        file = folder / f"{number:03d}_{Path(name).stem[:80]}.png"
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)  # not before the prompts have been understood
            sheet(drawn).save(file)
        rows = dict.fromkeys(panel.row for panel in drawn)
        figures = (
            f'<div class="panels">{"".join(figure(panel.picture, panel.title) for panel in drawn if panel.row == row)}</div>'
            for row in rows
        )
        parts.append(section(name, *figures))
    if not parts:
        raise UserError(*problems)
    for problem in problems:
        note(f"warning: left out: {problem}")
    about = (
        "<p>Maps are drawn in the colours of their three principal components. A head and its teacher share components: equal colours are "
        "equal features. Colours of two heads cannot be compared.</p>"
    )
    with disk_errors(folder):
        write_aside(folder / "index.html", page(f"What {Path(path).name} knows", [about, *parts]).encode())
    print_text(f"{len(parts)} {'picture' if len(parts) == 1 else 'pictures'} -> {folder / 'index.html'}")
    return folder / "index.html"


def _check_size(size: int | None) -> None:
    if size is not None and not 0 < size <= LARGEST:
        raise UserError(f"--size: should be px from 1 to {LARGEST:,}, found {size}")


def _out(out: str | Path) -> Path:
    folder = user_path(out, "--out")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {shown(folder)} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "index.html").is_file():
        raise UserError(f"--out: {shown(folder)} is not empty and no page of `amradio show`; nothing was touched; give another folder")
    return folder


def first_pictures(images: Sequence[str | Path]) -> Sequence[tuple[str, Picture]]:
    """(name, picture) of the first `MOST` that can be read; a line on stderr names the others, and says how many there are."""
    chosen: list[tuple[str, Picture]] = []
    broken: list[str] = []
    total = 0
    for path in images:
        source = None if is_picture(Path(path).name) else open_images(path)
        count = 1 if source is None else source.count()
        total += count
        for number in range(count):
            if len(chosen) == MOST:
                break
            name = Path(path).name if source is None else source.key(source.nth(number))
            try:
                chosen.append((name, one_picture(path) if source is None else decode(source.read(source.nth(number)), None)))
            except (UserError, UnreadableError, OSError) as error:
                broken.append(str(error) if source is None else f"{shown(name)}: it cannot be read as a picture: {error}")
    if not chosen:
        raise UserError(*broken)
    for problem in broken:
        note(f"warning: left out: {problem}")
    if total > len(chosen) + len(broken):
        note(f"{total:,} pictures; the first {MOST} are drawn")
    return chosen


def find_teachers(path: Path, model: Model) -> Mapping[str, Teacher]:
    """Those of the heads that are on this machine; a line on stderr names the others."""
    run = RunFolder(path)
    teachers: dict[str, Teacher] = {}
    with PHASES.phase("loading teachers"):
        for name in model.heads:
            card = model.config.heads[name].teacher
            if not run.is_run and card.get("type") == "custom":
                note(f"teacher of head {name}: not drawn, as it was an object of a program and not one that can be loaded")
                continue
            try:
                teachers[name] = _of_run(run, name) if run.is_run else find(name, card).freeze()
            except UserError as error:
                note(f"warning: teacher of head {name}: not drawn, as it cannot be loaded: {error.problems[0]}")
    return {name: teacher.to(model.device) for name, teacher in teachers.items() if not teacher.needs_keys}


def _of_run(run: RunFolder, name: str) -> Teacher:
    recipe = run.recipe()
    return load_teachers(recipe.model_copy(update={"teachers": {name: recipe.teachers[name]}}), {})[name]
