"""BatchNorm over the batch of all processes on CPUs, for which torch has no SyncBatchNorm.

With N positions of the whole batch, mean m and variance v of them, y = (x - m) / sqrt(v + eps) * weight + bias. The gradient with
respect to x needs the sums of dy and of dy (x - m) over the whole batch (Ioffe & Szegedy, arXiv 1502.03167, section 3); both directions
add these sums up over all processes.
"""

from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_statistics(module: nn.Module) -> None:
    """Makes the BatchNorms within a module normalise in training over the batch of all processes, in place.

    They keep their parameters, buffers and types (as subclasses). All processes must run the same modules in the same order.
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm | _Shared):
            norm.__class__ = _shared(type(norm))


@cache
def _shared(norm: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(f"Shared{norm.__name__}", (_Shared, norm), {})  # type: ignore[return-value]


class _Shared(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        """[B, D, ...] of this process -> the same shape."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, variance, count = _WholeBatchNorm.apply(input, self.weight, self.bias, self.eps)  # type: ignore[misc]
        self._follow(mean, variance * count / (count - 1).clamp(min=1))
        if isinstance(self, BatchNormAct2d):
            drop, act = cast(nn.Module, self.drop), cast(nn.Module, self.act)
            return act(drop(output))
        return output

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics; variance: unbiased."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


class _WholeBatchNorm(torch.autograd.Function):
    """(input, weight, bias, eps) -> (output, mean [D], biased variance [D], positions of the whole batch)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(input.float(), _others(input), correction=0)
        local_count = torch.tensor([input.numel() // input.shape[1]], dtype=torch.float64)
        mean, variance = mean.double(), variance.double()
        sums = torch.cat([local_count, local_count * mean, local_count * (variance + mean.square())])
        dist.all_reduce(sums)
        count = sums[0]
        mean, square = (sums[1:] / count).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        mean, variance = mean.float(), variance.float()
        ctx.save_for_backward(input, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        input, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradients[0].float()
        shape = [1, -1] + [1] * (input.ndim - 2)
        normalized = (input.float() - mean.view(shape)) * scale.view(shape)
        local_sums = torch.stack([gradient.sum(_others(input)), (gradient * normalized).sum(_others(input))])
        # Gradients of weight and bias are this process's own: DistributedDataParallel averages them.
        parameters = [local_sums[1].to(weight.dtype) if weight is not None else None, local_sums[0] if weight is not None else None]
        whole = local_sums.double()
        dist.all_reduce(whole)
        shift, slope = ((total / count).float().view(shape) for total in whole)
        factor = scale if weight is None else scale * weight.float()
        result = (gradient - shift - normalized * slope) * factor.view(shape)
        return result.to(input.dtype), parameters[0], parameters[1], None


def _others(input: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [dim for dim in range(input.ndim) if dim != 1]
