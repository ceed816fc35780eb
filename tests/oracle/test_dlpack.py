"""Exchange of arrays with PyTorch, both ways, without a copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from puna.driver import Buffer
from puna.dtype import DType

pytestmark = pytest.mark.oracle

PAIRS = [
    (DType.bool, torch.bool),
    (DType.uint8, torch.uint8),
    (DType.int8, torch.int8),
    (DType.int16, torch.int16),
    (DType.int32, torch.int32),
    (DType.int64, torch.int64),
    (DType.uint16, torch.uint16),
    (DType.uint32, torch.uint32),
    (DType.uint64, torch.uint64),
    (DType.float16, torch.float16),
    (DType.bfloat16, torch.bfloat16),
    (DType.float32, torch.float32),
    (DType.float64, torch.float64),
    (DType.float8_e4m3fn, torch.float8_e4m3fn),
    (DType.float8_e4m3fnuz, torch.float8_e4m3fnuz),
    (DType.float8_e5m2, torch.float8_e5m2),
    (DType.float8_e5m2fnuz, torch.float8_e5m2fnuz),
    (DType.float8_e8m0fnu, torch.float8_e8m0fnu),
]


@pytest.mark.parametrize(("dtype", "theirs"), PAIRS)
def test_from_torch(dtype: DType, theirs: torch.dtype) -> None:
    tensor = torch.tensor([[1.0, 2.0, 0.5], [1.0, 4.0, 2.0]]).to(theirs)
    buffer = Buffer.from_dlpack(tensor)
    assert (buffer.dtype, buffer.shape) == (dtype, (2, 3))
    assert buffer.to_numpy().astype(np.float64).tolist() == tensor.to(torch.float64).tolist()
    assert buffer.to_numpy().ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize(("dtype", "theirs"), PAIRS)
def test_to_torch(dtype: DType, theirs: torch.dtype) -> None:
    values = np.array([[1.0, 2.0, 0.5], [1.0, 4.0, 2.0]]).astype(dtype.to_numpy())
    buffer = Buffer.from_numpy(values)
    tensor = torch.from_dlpack(buffer)
    assert (tensor.dtype, tuple(tensor.shape)) == (theirs, (2, 3))
    assert tensor.to(torch.float64).tolist() == values.astype(np.float64).tolist()
    assert tensor.data_ptr() == values.ctypes.data


def test_bfloat16_strides_writes_and_lifetime() -> None:
    tensor = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4).T
    buffer = Buffer.from_dlpack(tensor)
    assert not buffer.is_contiguous
    buffer[1, 2] = -3
    assert tensor[1, 2].item() == -3
    expected = tensor.tolist()
    del tensor
    assert buffer.to_numpy().tolist() == expected
    back = torch.from_dlpack(buffer[1:, ::2])
    del buffer
    assert back.tolist() == [row[::2] for row in expected[1:]]
