"""An NVIDIA GPU as a device: found, driven by one library or another, its memory as arrays, its kernels compiled."""

from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / "fields" / "kernels.cu"
