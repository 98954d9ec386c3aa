"""Image files: NIfTI and MGH in our own code, and NRRD and MetaImage, read by SimpleITK."""
