"""What a volume, a grid, a flow, a transform and a score are: definitions in NumPy, and the files of other tools."""
