"""Devices and buffers."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.driver import CPU, Accelerator, Buffer, Device, DeviceSpec, accelerator_count, load_devices
from puna.dtype import DType
from puna.errors import DTypeError, ShapeError, UnsupportedModelError
from puna.graph import DeviceRef

# -- devices ----------------------------------------------------------------------------------------------------------


def test_cpu() -> None:
    device = CPU()
    assert (device.label, device.id, device.api, device.is_host, str(device)) == ("cpu", 0, "cpu", True, "cpu:0")
    assert device == CPU(0) != CPU(1)
    assert len({CPU(0), CPU(0), CPU(1)}) == 2
    assert device.can_access(CPU(1))
    assert device.architecture_name
    device.synchronize()
    with pytest.raises(ValueError, match="-1 is negative"):
        CPU(-1)


def test_stats_are_this_machines() -> None:
    stats = CPU().stats
    assert 0 < stats["free_memory"] <= stats["total_memory"]
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    assert stats["total_memory"] <= int(fields["MemTotal"].split()[0]) * 1024


def test_accelerators_are_refused_by_name() -> None:
    assert accelerator_count() == 0
    with pytest.raises(UnsupportedModelError, match="gpu:2"):
        Accelerator(2)
    with pytest.raises(UnsupportedModelError, match="gpu:0"):
        load_devices([DeviceSpec.cpu(), DeviceSpec.accelerator()])
    with pytest.raises(UnsupportedModelError, match="gpu:1"):
        DeviceRef.GPU(1).to_device()


def test_device_spec() -> None:
    assert DeviceSpec.cpu() == DeviceSpec(0, "cpu")
    assert DeviceSpec.accelerator(1) == DeviceSpec(1, "gpu")
    assert load_devices([DeviceSpec.cpu(1)]) == [CPU(1)]
    with pytest.raises(ValueError, match="'tpu' is unknown"):
        DeviceSpec(0, "tpu")
    with pytest.raises(ValueError, match="negative"):
        DeviceSpec(-1)


def test_device_ref() -> None:
    assert DeviceRef.CPU() == DeviceRef("cpu", 0) != DeviceRef.GPU()
    assert DeviceRef.CPU(0) != DeviceRef.CPU(1)
    assert len({DeviceRef.CPU(), DeviceRef.CPU(), DeviceRef.GPU()}) == 2
    assert (str(DeviceRef.CPU()), str(DeviceRef.GPU(3))) == ("cpu:0", "gpu:3")
    assert DeviceRef.CPU().is_cpu() and not DeviceRef.CPU().is_gpu()
    assert DeviceRef.GPU().is_gpu() and not DeviceRef.GPU().is_cpu()
    assert DeviceRef.from_device(CPU(1)) == DeviceRef.CPU(1)
    assert DeviceRef.CPU(1).to_device() == CPU(1)
    with pytest.raises(ValueError, match="'npu' is unknown"):
        DeviceRef("npu")
    with pytest.raises(ValueError, match="negative"):
        DeviceRef.CPU(-1)


# -- making buffers ---------------------------------------------------------------------------------------------------


def test_new_buffer_has_what_was_asked_for() -> None:
    buffer = Buffer(DType.bfloat16, [2, 3], CPU(1))
    assert (buffer.dtype, buffer.shape, buffer.rank, buffer.num_elements) == (DType.bfloat16, (2, 3), 2, 6)
    assert (buffer.element_size, buffer.device, buffer.is_host, buffer.pinned) == (2, CPU(1), True, False)
    assert buffer.is_contiguous and len(buffer) == 2
    assert repr(buffer) == "Buffer(bfloat16, [2, 3], cpu:1)"


def test_bad_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="pinned"):
        Buffer(DType.int8, [1], pinned=True)
    with pytest.raises(ValueError, match="negative"):
        Buffer(DType.int8, [-1])
    with pytest.raises(ValueError, match="no DType"):
        Buffer.from_numpy(np.zeros(2, np.complex64))


def test_zeros_and_scalar() -> None:
    assert not Buffer.zeros((4, 2), DType.float8_e4m3fn).to_numpy().astype(np.float32).any()
    scalar = Buffer.scalar(1.5, DType.bfloat16)
    assert (scalar.shape, scalar.rank, scalar.item()) == ((), 0, 1.5)


@pytest.mark.parametrize(
    ("dtype", "value"), [(DType.bool, True), (DType.int64, -(2**60)), (DType.float32, 0.5), (DType.float8_e5m2, -2.0)]
)
def test_item_is_a_python_number(dtype: DType, value: object) -> None:
    item = Buffer.scalar(value, dtype).item()
    assert item == value and type(item) is type(value)
    with pytest.raises(ShapeError, match="one element"):
        Buffer.zeros([2], dtype).item()


def test_from_numpy_shares_memory_and_strides() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    buffer = Buffer.from_numpy(array.T)
    array[0, 1] = 100
    assert buffer[1, 0].item() == 100
    assert not buffer.is_contiguous
    assert np.shares_memory(buffer.to_numpy(), array)
    dense = buffer.contiguous()
    assert dense.is_contiguous and not np.shares_memory(dense.to_numpy(), array)
    assert dense.contiguous() is dense
    assert np.array_equal(dense.to_numpy(), array.T)


# -- slices, views, copies --------------------------------------------------------------------------------------------


def test_slices_are_views() -> None:
    buffer = Buffer.from_numpy(np.arange(24, dtype=np.int32).reshape(2, 3, 4))
    part = buffer[1, ::2, -1]
    assert part.to_numpy().tolist() == [15, 23]
    part[0] = -1
    assert buffer[1, 0, 3].item() == -1
    assert buffer[1, 0, 3].shape == ()
    assert buffer[..., 0].shape == (2, 3)
    buffer[0] = Buffer.zeros((3, 4), DType.int32)
    assert not buffer[0].to_numpy().any()
    for bad in ([0, 1], np.array([0]), np.array([True, False]), True, None, 1.0):
        with pytest.raises(TypeError, match="indexed by integers"):
            buffer[bad]
    with pytest.raises(IndexError):
        buffer[2]


@given(st.data())
def test_slices_equal_numpys(data: st.DataObject) -> None:
    array = np.arange(60).reshape(3, 4, 5)
    part = st.one_of(st.integers(-3, 2), st.slices(4), st.just(...))
    index = tuple(data.draw(st.lists(part, max_size=3).filter(lambda parts: parts.count(...) <= 1)))
    result = Buffer.from_numpy(array)[index].to_numpy()
    assert np.array_equal(result, array[index])
    assert result.size == 0 or np.shares_memory(result, array)


def test_view() -> None:
    buffer = Buffer.from_numpy(np.arange(8, dtype=np.float32).reshape(2, 4))
    assert buffer.view(DType.float32, (8,)).to_numpy().tolist() == list(range(8))
    raw = buffer.view(DType.uint8)
    assert raw.shape == (2, 16)
    raw[0, :4] = 0xFF
    assert np.isnan(buffer[0, 0].item())
    assert buffer.view(DType.float64).shape == (2, 2)
    assert Buffer.scalar(1.0, DType.float32).view(DType.uint32).item() == 0x3F800000
    assert Buffer.scalar(1.0, DType.float32).view(DType.uint16, (2,)).to_numpy().tolist() == [0, 0x3F80]
    with pytest.raises(ShapeError):
        buffer.view(DType.float32, (9,))
    with pytest.raises(ShapeError):
        buffer.view(DType.float32, (-2, -4))
    with pytest.raises(ShapeError):
        Buffer.zeros((2, 3), DType.uint8).view(DType.uint16)
    with pytest.raises(ValueError, match="not contiguous"):
        buffer[:, 1:].view(DType.uint8)


def test_copies() -> None:
    buffer = Buffer.from_numpy(np.arange(6, dtype=np.int16).reshape(2, 3))
    copy = buffer.copy()
    copy[0, 0] = 9
    assert buffer[0, 0].item() == 0
    buffer.inplace_copy_from(copy)
    assert buffer[0, 0].item() == 9
    with pytest.raises(ShapeError):
        buffer.inplace_copy_from(copy[0])
    with pytest.raises(DTypeError):
        buffer.inplace_copy_from(Buffer.zeros((2, 3), DType.uint16))


def test_to_device() -> None:
    buffer = Buffer.zeros([2], DType.int8)
    assert buffer.to(CPU()) is buffer
    there: list[Device] = [CPU(), CPU(1)]
    same, other = buffer.to(there)
    assert same is buffer
    assert other.device == CPU(1) and not np.shares_memory(other.to_numpy(), buffer.to_numpy())


def test_numpy_takes_a_buffer_as_an_array() -> None:
    buffer = Buffer.from_numpy(np.arange(3, dtype=np.float32))
    assert np.asarray(buffer) is not None and np.shares_memory(np.asarray(buffer), buffer.to_numpy())
    assert not np.shares_memory(np.array(buffer), buffer.to_numpy())
    assert np.asarray(buffer, np.int64).dtype == np.int64


# -- files ------------------------------------------------------------------------------------------------------------


def test_mmap(tmp_path: Path) -> None:
    file = tmp_path / "numbers"
    file.write_bytes(b"\1" + np.arange(6, dtype="<f4").tobytes())
    buffer = Buffer.mmap(file, DType.float32, (2, 3), offset=1)
    assert buffer.to_numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    buffer[0, 0] = 7
    assert Buffer.mmap(file, DType.float32, (2, 3), "readonly", 1)[0, 0].item() == 0
    with pytest.raises(ValueError, match="read-only"):
        Buffer.mmap(file, DType.float32, (2, 3), "readonly", 1)[0, 0] = 1
    Buffer.mmap(file, DType.float32, (2, 3), "readwrite", 1)[0, 0] = 8
    assert Buffer.mmap(file, DType.float32, (1,), "readonly", 1).item() == 8
    assert Buffer.mmap(file, DType.float32, (0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match="the file has 25"):
        Buffer.mmap(file, DType.float32, (2, 3), offset=2)
    with pytest.raises(ValueError, match="negative"):
        Buffer.mmap(file, DType.float32, (1,), offset=-1)
    with pytest.raises(ValueError, match="mode 'w' is unknown"):
        Buffer.mmap(file, DType.float32, (1,), "w")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        Buffer.mmap(tmp_path / "none", DType.int8, (1,))


# -- DLPack (PyTorch's side is in tests/oracle/test_dlpack.py) --------------------------------------------------------

WHOLE_BYTES = [dtype for dtype in DType if dtype.size_in_bits >= 8]


@pytest.mark.parametrize("dtype", WHOLE_BYTES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
def test_dlpack_round_trip(dtype: DType, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32).astype(dtype.to_numpy())

    class Foreign:
        """Any other library's array: all that is known of it is the protocol."""

        def __init__(self, buffer: Buffer) -> None:
            self.buffer = buffer

        def __dlpack__(self, **request: object) -> object:
            return self.buffer.__dlpack__(**request)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.buffer.__dlpack_device__()

    back = Buffer.from_dlpack(Foreign(Buffer.from_numpy(array)))
    assert (back.dtype, back.shape) == (dtype, shape)
    assert back.to_numpy().tobytes() == array.tobytes()
    assert array.size == 0 or np.shares_memory(back.to_numpy(), array)


def test_dlpack_keeps_the_memory_alive() -> None:
    import gc
    import weakref

    class Owner(np.ndarray):
        """An array that can be watched."""

    owner = np.arange(5, dtype=np.float32).astype(ml_dtypes.bfloat16).view(Owner)
    watched = weakref.ref(owner)

    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **request: object) -> object:
            return Buffer.from_numpy(self.array).__dlpack__(**request)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    buffer = Buffer.from_dlpack(Foreign(owner))
    del owner
    gc.collect()
    assert buffer.to_numpy().astype(np.float32).tolist() == [0, 1, 2, 3, 4]
    del buffer
    gc.collect()
    assert watched() is None


def test_dlpack_refusals() -> None:
    with pytest.raises(TypeError, match="does not speak DLPack"):
        Buffer.from_dlpack([1, 2])
    with pytest.raises(BufferError, match="less than a byte"):
        Buffer.zeros([4], DType.float4_e2m1fn).__dlpack__()

    class OnGpu:
        def __dlpack__(self, **_request: object) -> object:
            raise AssertionError("never asked")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    with pytest.raises(BufferError, match="device \\(2, 0\\)"):
        Buffer.from_dlpack(OnGpu())

    class Complex:
        def __dlpack__(self, **request: object) -> object:
            return np.zeros(2, np.complex64).__dlpack__(**request)  # type: ignore[arg-type]

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    with pytest.raises(BufferError, match="no DType"):
        Buffer.from_dlpack(Complex())

    class NoCapsule(Complex):
        def __dlpack__(self, **_request: object) -> object:
            return "not a capsule"

    with pytest.raises(BufferError, match="not an unconsumed DLPack capsule"):
        Buffer.from_dlpack(NoCapsule())


def test_dlpack_from_an_old_producer_and_of_read_only_memory() -> None:
    array = np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16)

    class Old:
        def __dlpack__(self, stream: object = None) -> object:
            return Buffer.from_numpy(array).__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    assert Buffer.from_dlpack(Old()).to_numpy().tolist() == array.tolist()
    array.flags.writeable = False
    buffer = Buffer.from_dlpack(Buffer.from_numpy(array))
    with pytest.raises(ValueError, match="read-only"):
        buffer[0] = 1
    with pytest.raises(BufferError):
        buffer.__dlpack__()  # a consumer from before the read-only mark could write
