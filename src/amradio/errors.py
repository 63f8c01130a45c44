"""Errors that a user can cause: one message that says where, what was found, and the way out."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something that the user can put right; a command prints the problems and exits with 2, without a traceback."""

    def __init__(self, *problems: str, on_all_processes: bool = False):
        """problems: one sentence or more each, `where: what was found; the way out`. on_all_processes: all raise the same."""
        assert problems
        self.on_all_processes = on_all_processes
        self.problems: Sequence[str] = problems
        super().__init__("\n".join(problems))


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean 'weight'?` where a name is near, else the list of what there is (at most 30)."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    return "there is: " + ", ".join(names[:30]) + (f", and {len(names) - 30} more" if len(names) > 30 else "")
