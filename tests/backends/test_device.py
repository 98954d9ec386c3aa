"""The device layer: memory, arrays shared with other libraries, and messages when no GPU is available.

It runs on the stand-in for the CUDA driver (tests/backends/host_gpu), through the same cuda-python as on a GPU.
"""

import gc
import re
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.backends.cuda import dlpack
from runtime.backends.cuda.device import SLOTS
from runtime.backends.cuda.gpu import GpuInfo, find_gpu
from runtime.errors import InputError, NotAvailableError
from tests.backends.host_gpu import gpu

FREE_BYTES = 1 << 33


@pytest.fixture
def device():
    return gpu.open_host_device()


@pytest.fixture
def stand_in(device, monkeypatch):
    """The stand-in's controls, reset after each test."""
    gpu.seen(monkeypatch)
    library = gpu.stand_in()
    yield library
    library.host_gpu_set_memory(FREE_BYTES)
    library.host_gpu_set_devices(1)
    library.host_gpu_set_failing(0)


def counting(shape=(2, 3, 4), dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


class TestArrays:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_there_and_back(self, device, dtype):
        array = device.upload(counting(dtype=dtype))
        assert array.shape == (2, 3, 4) and array.dtype == dtype and array.contiguous
        assert array.nbytes == 24 * array.dtype.itemsize
        np.testing.assert_array_equal(device.download(array), counting(dtype=dtype))

    def test_a_view_is_downloaded_as_it_lies(self, device):
        found = device.download(device.upload(counting()).moveaxis(-1, 0))
        np.testing.assert_array_equal(found, np.moveaxis(counting(), -1, 0))
        assert found.strides == np.moveaxis(counting(), -1, 0).strides

    @pytest.mark.parametrize("axes", [(0, 0), (0, 2), (-1, 0), (1, -1), (2, 1)])
    def test_moveaxis_is_numpys(self, device, axes):
        array = device.upload(counting()).moveaxis(*axes)
        expected = np.moveaxis(counting(), *axes)
        assert (array.shape, array.strides) == (expected.shape, expected.strides)

    def test_channels_are_a_view(self, device):
        array = device.upload(counting((2, 2, 2, 4)))
        half = array.channels(2, 4)
        assert half.shape == (2, 2, 2, 2) and half.pointer == array.pointer + 8 and not half.contiguous
        with pytest.raises(ValueError, match="array with gaps"):
            device.download(half)

    def test_zeros(self, device):
        assert not device.download(device.zeros((5, 7))).any()

    def test_memory_serves_the_next_array_of_its_size(self, device):
        first = device.empty((11, 13))
        pointer = first.pointer
        view = first.moveaxis(0, 1)
        del first
        gc.collect()
        other = device.empty((11, 13))
        assert other.pointer != pointer  # a view still uses it
        del view
        gc.collect()
        assert device.empty((11, 13)).pointer == pointer

    def test_resting_gives_memory_back(self, device, stand_in):
        if gpu.REAL:
            pytest.skip("counts the stand-in's memory")
        device.rest()
        before = stand_in.host_gpu_used()
        array = device.empty((100, 100))
        assert stand_in.host_gpu_used() > before
        del array
        gc.collect()
        device.rest()
        assert stand_in.host_gpu_used() == before

    def test_memory_others_could_read_waits_for_all_of_the_device(self, device, stand_in):
        """Other libraries use other streams: memory they read must not be overwritten before they are done."""
        array = device.empty((17, 19))
        pointer, before = array.pointer, stand_in.host_gpu_calls(b"cuCtxSynchronize")
        assert array.moveaxis(0, 1).__cuda_array_interface__["data"][0] == pointer
        del array
        gc.collect()
        assert stand_in.host_gpu_calls(b"cuCtxSynchronize") == before
        assert device.empty((17, 19)).pointer == pointer
        assert stand_in.host_gpu_calls(b"cuCtxSynchronize") == before + 1

    def test_a_closed_device_gives_memory_back_at_once(self, device, stand_in):
        from runtime.backends.cuda.open_device import open_device

        before = stand_in.host_gpu_used()
        other = open_device()
        with other.current():
            kept = other.upload(counting((100, 100)))
            other.empty((50, 50))
            other.close()
            np.testing.assert_array_equal(other.download(kept), counting((100, 100)))
        assert stand_in.host_gpu_used() > before
        del kept
        gc.collect()
        assert stand_in.host_gpu_used() == before

    def test_slots_come_back(self, device):
        for _ in range(3 * SLOTS):
            device.slot()


class TestOtherLibraries:
    """Arrays are exchanged with other libraries in both directions without a copy."""

    def test_the_array_interface_describes_views(self, device):
        array = device.upload(counting())
        facts = array.moveaxis(-1, 0).__cuda_array_interface__
        assert facts["shape"] == (4, 2, 3) and facts["strides"] == (4, 48, 16) and facts["typestr"] == "<f4"
        assert facts["data"] == (array.pointer, False) and array.__cuda_array_interface__["strides"] is None
        assert facts["version"] == 3 and facts["stream"] == device.driver.stream

    def test_an_array_interface_is_wrapped_where_it_is(self, device):
        array = device.upload(counting())

        class Foreign:
            __cuda_array_interface__ = array.moveaxis(0, 2).__cuda_array_interface__

        wrapped = device.wrap(Foreign())
        assert wrapped.pointer == array.pointer
        np.testing.assert_array_equal(device.download(wrapped), np.moveaxis(counting(), 0, 2))
        assert device.wrap(array) is array

    def test_dlpack_there_and_back(self, device, monkeypatch):
        """NumPy accepts capsules of host memory only; the stand-in's memory is host memory."""
        monkeypatch.setattr(device, "dlpack_device", (1, 0))
        lent = len(dlpack._lent)
        array = device.upload(counting()).moveaxis(0, 1)
        pointer = array.pointer
        read = np.from_dlpack(array)
        del array
        np.testing.assert_array_equal(read, np.moveaxis(counting(), 0, 1))
        assert read.ctypes.data == pointer and len(dlpack._lent) == lent + 1
        wrapped = device.wrap(_Foreign(device.upload(counting(dtype=np.float16)).moveaxis(-1, 0)))
        del read
        gc.collect()
        np.testing.assert_array_equal(device.download(wrapped), np.moveaxis(counting(dtype=np.float16), -1, 0))
        del wrapped
        gc.collect()
        assert len(dlpack._lent) == lent

    def test_a_capsule_nobody_takes_is_let_go(self, device):
        lent = len(dlpack._lent)
        capsule = device.upload(counting()).__dlpack__()
        assert len(dlpack._lent) == lent + 1
        del capsule
        assert len(dlpack._lent) == lent

    def test_memory_of_another_gpu_is_refused(self, device):
        facts = {"data": (16, False), "shape": (1,), "typestr": "<f4", "version": 2}
        with pytest.raises(InputError, match=r"array: its memory is not on .* \(device 0\); copy it there"):
            device.wrap(SimpleNamespace(__cuda_array_interface__=facts))

    def test_a_tensor_that_requires_a_gradient_is_refused(self, device):
        class Tensor:
            def __dlpack_device__(self):
                return device.dlpack_device

            def __dlpack__(self, stream=None):
                assert stream == device.driver.stream
                raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

        with pytest.raises(InputError, match=r"array: cannot be read \(Can't export .*tensor.detach\(\)\)"):
            device.wrap(Tensor())

    def test_what_cannot_be_wrapped_is_said(self, device, monkeypatch):
        with pytest.raises(InputError, match=r"array: is on DLPack device \(1, 0\), expected \(2, 0\); copy"):
            device.wrap(_Foreign(counting()))
        monkeypatch.setattr(device, "dlpack_device", (1, 0))
        with pytest.raises(InputError, match="array: has DLPack type 0, 64 bits, 1 lanes, expected floating point"):
            device.wrap(_Foreign(counting(dtype=np.int64)))
        with pytest.raises(InputError, match="array: got a list, expected"):
            device.wrap([1, 2])


class _Foreign:
    """An array that exposes another array's memory through DLPack only."""

    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


class TestWhatIsSaid:
    def test_out_of_memory(self, device, stand_in):
        device.rest()
        stand_in.host_gpu_set_memory(stand_in.host_gpu_used() + 1_000_000)
        kept = device.empty((100, 1000))
        line = (
            f"--backend: {device.name} is out of memory: needs 4 MB more, 0.0 of "
            r"\d+.\d GB are free; close other programs that use it, or choose --precision fp16 or a CPU backend"
        )
        with pytest.raises(NotAvailableError, match=line):
            device.empty((1000, 1000))
        del kept
        gc.collect()
        assert device.empty((250, 999)).nbytes == 999_000  # the pool's unused memory was freed to make room

    def test_the_driver_reports_an_error(self, device, stand_in):
        stand_in.host_gpu_set_failing(700)
        with pytest.raises(InputError, match=r"CUDA: CUDA_ERROR_ILLEGAL_ADDRESS: .*; run nvidia-smi"):
            device.driver.synchronize()

    def test_the_gpu_is_found_without_packages(self, stand_in):
        assert find_gpu.__wrapped__() == GpuInfo("stand-in on the host", (8, 9), FREE_BYTES, (13, 0), "0000:00:00.0")

    def test_no_gpu(self, stand_in):
        from runtime.backends.cuda.open_device import open_device

        stand_in.host_gpu_set_devices(0)
        assert find_gpu.__wrapped__() == "the NVIDIA driver finds no usable GPU (CUDA_ERROR_NO_DEVICE)"
        with pytest.raises(NotAvailableError, match="--backend: needs an NVIDIA GPU, but the NVIDIA driver finds no"):
            open_device()

    def test_no_driver(self, monkeypatch):
        monkeypatch.setattr("runtime.backends.cuda.gpu.LIBRARY", "libcuda.so.none")
        assert find_gpu.__wrapped__() == "this computer has no NVIDIA driver"

    def test_a_driver_that_fails(self, device, stand_in):
        from runtime.backends.cuda.driver_cuda_python import CudaPythonDriver

        stand_in.host_gpu_set_failing(3)
        line = re.escape("--backend: device 0 cannot be used through cuda-python (CUDA: ")
        with pytest.raises(NotAvailableError, match=line):
            CudaPythonDriver()

    def test_a_driver_older_than_what_compiles_for_it(self, device, monkeypatch):
        from runtime.backends.cuda import open_device

        monkeypatch.setattr(open_device, "find_gpu", lambda: GpuInfo("RTX 3090", (8, 6), FREE_BYTES, (12, 4)))
        line = r"the driver of RTX 3090 supports CUDA 12\.4, but NVRTC is for CUDA 13\.\d+; update the"
        with pytest.raises(NotAvailableError, match=line):
            open_device.open_device()

    def test_what_goes_wrong_in_opening_lets_auto_go_on(self, device, stand_in, monkeypatch):
        from runtime.backends.cuda import nvrtc
        from runtime.backends.cuda.open_device import open_device

        monkeypatch.setattr(nvrtc, "compile_kernels", lambda capability: b"no cubin")
        line = r"cannot be used \(CUDA: CUDA_ERROR_INVALID_IMAGE: .*; update its driver"
        with pytest.raises(NotAvailableError, match=line):
            open_device()

    def test_the_library_that_drives_it_can_be_chosen(self, stand_in, monkeypatch):
        from runtime.backends.cuda import open_device

        monkeypatch.setenv(open_device.VARIABLE, "cuda-python")
        assert open_device.open_device().driver.library == "cuda-python"
        monkeypatch.setenv(open_device.VARIABLE, "opencl")
        with pytest.raises(InputError, match="RPNET_CUDA_DRIVER: got 'opencl', expected cuda-python or pycuda"):
            open_device.open_device()
        monkeypatch.setenv(open_device.VARIABLE, "pycuda")
        monkeypatch.setattr(open_device, "_is_installed", lambda package: False)
        line = "no library to drive the GPU: pycuda is missing; pip install -r"
        with pytest.raises(NotAvailableError, match=line):
            open_device.open_device()

    def test_another_capability_than_nvrtc_knows(self):
        nvrtc = pytest.importorskip("runtime.backends.cuda.nvrtc")
        line = r"does not support compute capability 3\.5, only 7\.5, .*; install the nvidia-"
        with pytest.raises(NotAvailableError, match=line):
            nvrtc.compile_kernels((3, 5))


class TestGraphs:
    def test_work_is_captured_once_and_sent_again(self, device, stand_in):
        if gpu.REAL:
            pytest.skip("counts the stand-in's calls")
        sent = []
        graph = device.driver.capture(lambda: sent.append(1))
        before = stand_in.host_gpu_calls(b"cuGraphLaunch")
        graph()
        graph()
        assert sent == [1] and stand_in.host_gpu_calls(b"cuGraphLaunch") == before + 2

    def test_what_goes_wrong_while_capturing_ends_the_capture(self, device, stand_in):
        def work():
            raise KeyError("work")

        before = stand_in.host_gpu_calls(b"cuStreamEndCapture")
        with pytest.raises(KeyError):
            device.driver.capture(work)
        assert stand_in.host_gpu_calls(b"cuStreamEndCapture") == before + 1
