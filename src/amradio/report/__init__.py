"""Pages and tables from run folders; nothing here knows how a run is made."""

from .comparison import Row, changed_keys, final_rows
from .runs import Run, read_runs

__all__ = ["Row", "Run", "changed_keys", "final_rows", "read_runs"]
