"""Where a comparison keeps its numbers: a JSON file that can be gone on with, and a Markdown table of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amradio.environment import environment


class Book:
    """The JSON file: rows, each of parts, each with the settings under which it was measured."""

    def __init__(self, path: Path):
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}}

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return self.content["rows"]

    def has(self, row: str, part: str, settings: Any) -> bool:
        """Whether the part is there, measured with these settings."""
        return self.rows.get(row, {}).get(part, {}).get("settings") == _plain(settings)

    def write(self, row: str, part: str, settings: Any, found: Mapping[str, Any]) -> None:
        """Enters a part and writes the file, aside and then renamed."""
        self.rows.setdefault(row, {})[part] = {"settings": _plain(settings), "load_average": round(os.getloadavg()[0], 2), **found}
        self.content["environment"] = environment()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".part")
        aside.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.path)


def _plain(settings: Any) -> Any:
    return json.loads(json.dumps(settings))


def markdown(rows: list[dict[str, Any]], columns: list[str], against: list[str]) -> str:
    """One table of all, and for each of `against` how many times less or faster the others are."""
    lines = [f"| {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) - 1)]
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    costs = [column for column in columns if column == "GMACs" or "images/s" in column]
    by_name = {row["model"]: row for row in rows}
    for base in (by_name[name] for name in against if name in by_name):
        lines += ["", f"Against {base['model']}: GMACs so many times less, images/s so many times more.", ""]
        lines += [f"| model | {' | '.join(costs)} |", "|---|" + "--:|" * len(costs)]
        lines += [f"| {row['model']} | {' | '.join(_ratio(row, base, cost) for cost in costs)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _ratio(row: Mapping[str, Any], base: Mapping[str, Any], cost: str) -> str:
    if cost not in row or cost not in base:
        return "-"
    return f"{base[cost] / row[cost] if cost == 'GMACs' else row[cost] / base[cost]:.2f}"
