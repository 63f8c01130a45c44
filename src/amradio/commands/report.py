"""`amradio report`: one page about a run, or about several side by side."""

from collections.abc import Callable
from pathlib import Path

from ..console import PHASES, print_text
from ..errors import UserError, shown
from ..files import disk_errors, user_path, write_aside
from ..report import read_runs
from ..report.document import build_page
from ..run_folder import RunFolder


def report(*paths: str | Path, out: str | Path = "report.html") -> Path:
    """Writes one self-contained HTML page (no script or picture from elsewhere) and returns its path; a page that is there is replaced.

    paths: run folders, finished or not. out: a file that ends with .html. Raises UserError where one is no run folder, a file in it is
    damaged, or `out` is anything but a page.
    """
    file = user_path(out, "--out")
    if file.suffix.lower() not in (".html", ".htm") or file.is_dir():
        raise UserError(f"--out: {shown(file)} is no name of a page; give a file that ends with .html")
    with PHASES.phase("reading the runs and drawing the page"):
        content = build_page(read_runs(paths))
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_aside(file, content.encode())
    print_text(f"{len(paths)} {'run' if len(paths) == 1 else 'runs'} -> {file}")
    return file


def write_own_report(folder: RunFolder, warn: Callable[[str], None]) -> None:
    """Writes or replaces report.html in a run; where it cannot be made, a warning, as the run is complete without it."""
    try:
        folder.write("report.html", build_page(read_runs([folder.path])))
    except (UserError, OSError, KeyError, TypeError) as error:  # files of a former start may be damaged
        warn(f"{folder.path}: no report.html was written ({error}); delete the file that is damaged and run amradio report")
