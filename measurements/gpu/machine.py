"""The machine of the check: GPU, driver, clocks, processor, versions of all libraries."""

from measurements.gpu.part import Part
from runtime.host.machine import installed_versions
from runtime.workflows.benchmark.machine.gpu import gpu_warnings, gpu_words
from runtime.workflows.benchmark.machine.host import machine_facts

# Distributions beyond those in a registration's report; the engine libraries have several names.
PACKAGES = ("numpy", "numba", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "cuda-python", "cuda-bindings")
PACKAGES += ("cuda-core", "nvidia-cuda-nvrtc", "pycuda", "tensorrt", "tensorrt-rtx")


def machine() -> Part:
    """Describe the machine, as a part, with warnings about its figures in the notes."""
    facts, libraries = machine_facts(), installed_versions(PACKAGES)
    gpu = facts["card"]
    lines = [
        f"- GPU: {gpu_words(gpu) if gpu else 'none'}",
        f"- now: {_now(gpu or {})}",
        f"- processor: {facts['cpu']}, {facts['cores']} cores usable; load {facts['load_average']}",
        f"- system: {facts['system']}",
        f"- libraries: {', '.join(f'{name} {version}' for name, version in libraries.items())}",
    ]
    return Part("Machine", lines, {"machine": facts, "libraries": libraries}, notes=gpu_warnings(gpu))


def _now(gpu: dict) -> str:
    units = {"clock_mhz": "MHz", "memory_clock_mhz": "MHz of memory", "temperature_c": "degrees C"}
    units |= {"memory_used_mib": "MiB used", "used_percent": "% busy"}
    values = [f"{gpu[name]:.0f} {unit}" for name, unit in units.items() if isinstance(gpu.get(name), float)]
    return ", ".join(values) or "no values from nvidia-smi"
