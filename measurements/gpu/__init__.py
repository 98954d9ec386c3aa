"""Parts of `measurements/gpu_check.py`."""
