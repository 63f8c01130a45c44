"""Learning rates of parts of the network, over that of the schedule."""

from torch import nn

from ..students.base import Student
from .settings import OptimizerSettings


def rate_factors(network: nn.Module, settings: OptimizerSettings) -> dict[str, float]:
    """The factor of each parameter of the network by name, `optimizer.rates` and `optimizer.layer_decay` together.

    network: a student, as `student`, and what stands on its features (`heads` of the rates).
    Raises UserError where `layer_decay` asks for layers of a student that has no order of layers.
    """
    rates = settings.rates
    factors = {name: rates.body if name.startswith("student.") else rates.heads for name, _ in network.named_parameters()}
    for name in norm_parameters(network):
        factors[name] *= rates.norms
    if settings.layer_decay != 1:
        student = network.get_submodule("student")
        assert isinstance(student, Student)
        layers = student.layers()
        last = max(layers.values())
        for name, layer in layers.items():
            factors[f"student.{name}"] *= settings.layer_decay ** (last - layer)
    return factors


def norm_parameters(module: nn.Module) -> set[str]:
    """Names of the parameters of norms. A norm is known by the name of its class, as timm has more of them than torch (RmsNorm, ...);
    a convolution that is named for the norm inside it (ConvNorm) has no parameters itself."""
    return {
        f"{prefix}.{name}"
        for prefix, part in module.named_modules()
        if "norm" in type(part).__name__.lower()
        for name, _ in part.named_parameters(recurse=False)
    }
