"""Networks without an engine library: their convolutions compiled for this processor."""
