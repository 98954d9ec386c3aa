"""Where a cohort's processes run: here, on the workers of Dask distributed, or as an array of jobs of Slurm."""
