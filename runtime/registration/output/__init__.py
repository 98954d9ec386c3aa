"""The files of a registration: folder, report and saving."""
