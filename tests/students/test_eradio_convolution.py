"""E-RADIO's convolutions as products of matrices: what they give is torch's, and they are taken only where they are faster."""

import pytest
import torch
import torch.nn.functional as F

from amradio.students import eradio_convolution
from amradio.students.eradio_convolution import Convolution


def layer(stride: int = 1, bias: bool = False, **changes: int) -> Convolution:
    torch.manual_seed(0)
    return Convolution(8, 12, 3, stride, 1, bias=bias, **changes).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (5, 4), (8, 7)])
def test_it_gives_what_torch_gives(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], stride: int, bias: bool):
    monkeypatch.setattr(eradio_convolution, "LARGE", 0)
    convolution = layer(stride, bias)
    x = torch.randn(3, 8, *size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert convolution._takes_matrices(x)
        output = convolution(x)
        expected = F.conv2d(x, convolution.weight, convolution.bias, stride, 1)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(convolution(x), expected, rtol=1e-5, atol=1e-6)


def test_it_is_torchs_where_matrices_are_slower_or_the_result_is_recorded(monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert not layer()._takes_matrices(x)  # few weights
    monkeypatch.setattr(eradio_convolution, "LARGE", 0)
    assert not layer()._takes_matrices(x)  # gradients
    with torch.no_grad():
        assert layer()._takes_matrices(x)
        assert not layer()._takes_matrices(torch.randn(5, 8, 16, 16))  # many cells
        assert not layer()._takes_matrices(x.bfloat16())
        assert not layer(groups=4)._takes_matrices(x)
        assert not layer().to(memory_format=torch.contiguous_format)._takes_matrices(x)  # their order would be changed in every call
        with torch.autocast("cpu", torch.bfloat16):
            assert not layer()._takes_matrices(x)
