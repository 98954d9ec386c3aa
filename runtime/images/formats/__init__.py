"""Image files: NIfTI and MGH, read and written here, and others that a library reads."""
