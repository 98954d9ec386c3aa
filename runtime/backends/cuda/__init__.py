"""NVIDIA GPUs: discovery, the driver library, arrays in device memory, and compilation of the kernels."""

from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / "fields" / "kernels.cu"
