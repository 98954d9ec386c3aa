"""Output folder of a prepared data set, and its contact sheet."""
