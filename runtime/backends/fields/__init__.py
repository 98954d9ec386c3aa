"""Field operations, which are everything between engine calls, on the CPU and on a GPU."""
