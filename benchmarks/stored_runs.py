"""A file of results that grows run by run, so that a benchmark which was stopped goes over what is there and runs what is missing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amradio.environment import environment
from amradio.errors import UserError
from amradio.files import write_aside


class StoredRuns:
    """The runs of one file, each with the time, machine and commit that it was made with."""

    def __init__(self, file: Path, settings: Mapping[str, Any]):
        """Reads `file` where it is there. settings: of all its runs. Raises UserError where those of the file differ."""
        self.file, self.settings = file, dict(settings)
        self.runs: list[dict[str, Any]] = []
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["settings"] != self.settings:
                raise UserError(f"{file}: its runs were made with {content['settings']}, not {self.settings}; give another file")
            self.runs = content["runs"]

    def has(self, **keys: Any) -> bool:
        """Whether there is a run with these values."""
        return any(all(run[key] == value for key, value in keys.items()) for run in self.runs)

    def add(self, run: Mapping[str, Any], **content: Any) -> None:
        """Writes the file with one more run. content: what else it has, e.g. a summary of the runs."""
        about = {key: value for key, value in environment().items() if key in ("time", "cpu", "commit")}
        self.runs.append(dict(run) | {"made_with": about})
        self.write(**content)

    def write(self, **content: Any) -> None:
        """Writes the file, a line a run."""
        head = json.dumps({"settings": self.settings, "environment": environment()} | content, indent=1).removesuffix("\n}")
        lines = ",\n".join(f"  {json.dumps(run)}" for run in self.runs)
        write_aside(self.file, f'{head},\n "runs": [\n{lines}\n ]\n}}\n'.encode())
