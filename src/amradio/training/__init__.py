"""A recipe becomes a run: everything is checked first, then loaded, then trained in the run folder."""

from .amounts import doubts_about_amounts
from .checks import check_data, check_network, describe_data
from .initialization import initialize
from .periodic_evaluation import PeriodicSuite
from .schedule import describe_views
from .setup import load_teachers
from .trainer import Trainer

__all__ = [
    "PeriodicSuite",
    "Trainer",
    "check_data",
    "check_network",
    "describe_data",
    "describe_views",
    "doubts_about_amounts",
    "initialize",
    "load_teachers",
]
