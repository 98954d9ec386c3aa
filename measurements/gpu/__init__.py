"""The parts of `measurements/gpu_check.py`."""
