"""Convolutions of enlarged pictures, computed on the small ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from headwarp.nets.layers import UpsampledConv


@pytest.mark.parametrize("factor", [2, 3, 4, 7])
@pytest.mark.parametrize("size", [(5, 3), (1, 1)])
@torch.no_grad()
def test_equal_to_enlarging_first_borders_included(factor, size):
    conv = nn.Conv2d(4, 6, 3, padding=1).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    wanted = F.relu(conv(F.interpolate(x, scale_factor=factor)))
    ours = UpsampledConv(conv, factor)(x)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("conv", "factor"),
    [(nn.Conv2d(1, 1, 3), 4), (nn.Conv2d(1, 1, 5, padding=1), 4), (nn.Conv2d(1, 1, 3, padding=1), 1)],
)
def test_other_convolutions_are_refused(conv, factor):
    with pytest.raises(ValueError, match="3 x 3 convolution with padding 1"):
        UpsampledConv(conv, factor)
