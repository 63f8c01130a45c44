from .checks import check_data, check_extras, check_sizes, describe_data
from .setup import Teachers, load_teachers
from .trainer import Training

__all__ = ["Teachers", "Training", "check_data", "check_extras", "check_sizes", "describe_data", "load_teachers"]
