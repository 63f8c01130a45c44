"""From a configuration and weights to a network: compared first, without allocating anything, then built and filled."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..libraries import first_line
from ..network import Network, NetworkConfig, load_exactly, misfits
from ..students.base import Student
from ..tensors import TooManyError, at_most, watching

SURVEYS = 8
"""How often a student may be built before its weights are: timm's are tried out first."""
ROOM = 1000
"""Parameters that may be built beyond those."""


def check_fits(
    config: NetworkConfig,
    shapes: Mapping[str, Sequence[int]],
    where: str,
    name: Callable[[str], str] = str,
    custom_student: Student | None = None,
) -> None:
    """Raises UserError where `config` does not describe the network of these weights; nothing is allocated.

    shapes: of the tensors of the file, under our names. where, name: as of `load_exactly`. custom_student: the student of type `custom`.
    """
    try:
        with torch.device("meta"), at_most(SURVEYS * len(shapes) + ROOM):
            blank = config.without_start().build(custom_student)
    except UserError as error:
        raise UserError(*(f"{where}: {problem}" for problem in error.problems)) from None
    except TooManyError:
        reason = f"the configuration describes many more layers than the {len(shapes):,} tensors of the file"
        raise UserError(f"{where}: {reason}; they do not belong together: copy or download both again") from None
    except Exception as error:  # sizes that no tensor can have; torch and timm raise whatever their constructors do
        reason = f"a network of the configuration cannot be built ({first_line(error)})"
        raise UserError(f"{where}: {reason}; copy or download the model again") from None
    problems = misfits(blank.state_dict(), shapes, where, name)
    if problems:
        raise UserError(*problems)


def filled(
    config: NetworkConfig, weights: dict[str, Tensor], where: str, name: Callable[[str], str] = str, custom_student: Student | None = None
) -> Network:
    """The network of `config` with these weights, under our names; errors as of `check_fits`."""
    check_fits(config, {key: tensor.shape for key, tensor in weights.items()}, where, name, custom_student)
    with watching(_without_value):
        network = config.without_start().build(custom_student)
    _give_memory(network)
    load_exactly(network, weights, where, name)
    return network


def _without_value(parameter: nn.Parameter) -> nn.Parameter:
    """The same on the meta device: drawing first values, which a file replaces, takes most of the time of building a large network.

    Buffers are as usual, those that no file holds among them.
    """
    return parameter if parameter.is_meta else nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)


def _give_memory(network: nn.Module) -> None:
    """Puts parameters of the meta device where torch puts new tensors; their values are undefined."""
    device, given = torch.get_default_device(), dict[nn.Parameter, nn.Parameter]()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.is_meta:
                if parameter not in given:
                    given[parameter] = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
                setattr(module, name, given[parameter])
    assert not any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers()))
