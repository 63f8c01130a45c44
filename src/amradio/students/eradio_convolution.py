"""3x3 convolutions of E-RADIO's last stages, on a CPU as products of matrices.

Without gradients, in float32 on a CPU, the library's convolution reorders its weights anew in every call, which for many channels and few
cells takes longer than the arithmetic. Elsewhere, in training, in bfloat16, on a GPU, compiled or exported, they are torch's convolutions.
Results differ by rounding only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 9 * 768 * 768
"""Weights from which a convolution is a product of matrices (21 MB: they do not stay in the cache) ..."""
FEW = 1024
"""... if its output has so many cells at most. Measured on shapes from 64 to 1,536 channels and 4 to 32 cells per side (docs/LOG.md)."""


class Convolution(nn.Conv2d):
    """A convolution: [B, in, H, W] -> [B, out, H / stride, W / stride]; quickest where maps and weights are channels last in memory."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        if not self._takes_matrices(input):
            return super().forward(input)
        stride = self.stride[0]
        windows = F.pad(input.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).unfold(1, 3, stride).unfold(2, 3, stride)
        patches = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)  # [B, H / stride, W / stride, 9 in]
        return F.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias).permute(0, 3, 1, 2)

    def _takes_matrices(self, x: Tensor) -> bool:
        batch, _, height, width = x.shape
        stride = self.stride[0]
        return (
            self.weight.numel() >= LARGE
            and batch * -(-height // stride) * -(-width // stride) <= FEW
            and self.kernel_size == (3, 3)
            and self.padding == (1, 1)
            and self.groups == 1
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and self.weight.is_contiguous(memory_format=torch.channels_last)
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
            and not torch.onnx.is_in_onnx_export()
        )
