"""For many tests: a small random network, exported once by the real exporter and its real gate; scans to prepare."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Workers share the cores: with two threads each, most time goes into threads that wait for one another at full speed.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent
# Left out of `make quick`: files whose set-up exports, trains, compiles or starts many processes.
SLOW = (
    *("export/", "fuzz/", "commands/", "measurements/", "pages/", "workflows/", "train/"),
    *("backends/test_build", "backends/test_device", "backends/test_engine_set", "backends/test_kernels_cuda"),
    *("backends/test_loop_on_a_gpu", "backends/test_networks", "backends/test_fields"),
    *("host/test_cache_folder", "host/test_whole_results", "registration/test_warmup", "transforms/test_round_trips"),
    "project/test_packaging",
)
# Need the stand-in for a GPU, or a GPU.
GPU = (
    *("backends/test_device", "backends/test_kernels_cuda", "backends/test_loop_on_a_gpu"),
    *("backends/test_networks_cuda", "backends/test_networks_tensorrt", "measurements/test_gpu_check"),
)


# Begun first, the longest before all others: whichever worker is done first then finds short files to go on with. The
# first one exports the engine set, which the second one does not need.
LONG = (
    *("commands/test_cli", "project/test_packaging", "export/test_export", "commands/test_as_a_program"),
    *("workflows/test_cohort", "pages/"),
    *("workflows/test_benchmark.py", "train/test_fit", "train/test_distributed", "registration/test_warmup"),
    *("train/test_synthetic", "train/test_recipe.py", "registration/test_affine", "fuzz/test_inputs"),
    *("backends/test_build", "backends/test_fields.py", "backends/test_networks.py", "backends/test_loop_on_a_gpu"),
    *("fuzz/", "host/", "backends/", "train/", "workflows/"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order below: pytest-xdist would begin with the files of most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their files, where a file may mark single tests besides, and put the longest files first."""
    order = {}
    for item in items:
        place = item.path.relative_to(ROOT / "tests").as_posix()
        for marker, places in (("slow", SLOW), ("gpu", GPU)):
            if place.startswith(places):
                item.add_marker(marker)
        order[item] = next((rank for rank, start in enumerate(LONG) if place.startswith(start)), len(LONG))
    items.sort(key=order.__getitem__)


@pytest.fixture(scope="session", autouse=True)
def hidden_gpu():
    """Tests see no GPU, unless they ask for the stand-in of tests/backends/host_gpu: `auto` is the same everywhere.

    The stand-in takes the place of this computer's driver, so it is loaded before anything could load that one.
    """
    from runtime.backends.cuda import gpu as gpus
    from tests.backends.host_gpu import gpu

    if gpu.REAL:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that tests start
        with contextlib.suppress(pytest.skip.Exception):
            gpu.stand_in()
        patch.setattr(gpus, "LIBRARY", "hidden from tests")
        gpus.find_gpu.cache_clear()
        assert gpus.find_gpu() == "this computer has no NVIDIA driver"
        patch.undo()
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(autouse=True)
def own_threads():
    """A training run sets torch's number of threads for the whole process; afterwards it is what it was."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else int(os.environ.get("OMP_NUM_THREADS", 0))
    yield
    if (torch := sys.modules.get("torch")) and before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The engine set that ships with the project."""
    return ROOT / "engines"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Function of a name and of what fills a folder: the folder, filled by the first worker that asks for it."""
    from runtime.errors import ScarceError
    from runtime.host.files.folder_lock import folder_lock

    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        place = shared / name
        while not place.exists():
            with contextlib.suppress(ScarceError), folder_lock(shared / f"{name}-lock"):
                if not place.exists():
                    part = tmp_path_factory.mktemp(name)
                    fill(part)
                    part.rename(place)
            time.sleep(0.1)
        return place

    return folder


@pytest.fixture(scope="session")
def checkpoint(made_once) -> Path:
    """A checkpoint of a random network whose flows are of a few tenths of a voxel: mechanics, not quality."""

    def fill(folder: Path) -> None:
        import torch

        from train.model.checkpoint import Checkpoint, save_checkpoint
        from train.model.network import RPNet

        torch.manual_seed(0)
        network = RPNet()
        facts = {"data": "none", "licence": "Apache-2.0"}
        save_checkpoint(folder / "random.pt", Checkpoint(network.config, network.state_dict(), facts))

    return made_once("checkpoint", fill) / "random.pt"


@pytest.fixture(scope="session")
def engine_dir(checkpoint, made_once) -> Path:
    """The engine set exported from `checkpoint`. Tests that change files take `engine_copy`."""

    def fill(folder: Path) -> None:
        from export.publish import ExportOptions, export_checkpoint

        export_checkpoint(checkpoint, folder / "set", ExportOptions(gate_shape=(24, 32, 16)))

    return made_once("engines", fill) / "set"


@pytest.fixture
def engine_copy(engine_dir, tmp_path) -> Path:
    return Path(shutil.copytree(engine_dir, tmp_path / "set"))


@pytest.fixture(scope="session")
def engines(engine_dir):
    import runtime

    with runtime.open_engines(engine_dir, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    """Folder of native scans and their list; tests that change files take `native_copy`."""
    from tests.workflows.preparation import write_native

    return write_native(tmp_path_factory.mktemp("scans") / "native")


@pytest.fixture
def native_copy(native, tmp_path) -> Path:
    return Path(shutil.copytree(native, tmp_path / "native"))


@pytest.fixture(scope="module")
def prepared(native):
    """What `prepare_scans` makes of `native`."""
    from runtime.workflows.preparation import prepare_scans
    from tests.workflows.preparation import options

    return prepare_scans(options(native, native.parent / "out"))


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """A scan that lies (6, -4, 3) mm away from its reference, whose voxels fall on each other."""
    from tests.known_pair import make_pair

    return make_pair(tmp_path_factory.mktemp("shifted"))


@pytest.fixture(scope="module")
def bent(tmp_path_factory):
    """Oblique against flipped axes, other spacings, an affine and a smooth deformation."""
    from tests import scans
    from tests.known_pair import bend, make_pair

    fine = scans.grid((38, 40, 36), (0.9, 1.0, 1.1), rotation=scans.OBLIQUE, axes="LIA")
    return make_pair(tmp_path_factory.mktemp("bent"), bend, scans.grid((44, 48, 42), axes="LPS"), fine)
