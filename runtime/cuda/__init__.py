"""An NVIDIA card as a device: found, driven by one library or another, its memory as arrays, its kernels compiled."""
