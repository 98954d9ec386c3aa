"""The host machine: cores and memory, the cache folder, files, progress, and kernels compiled for its processor."""
