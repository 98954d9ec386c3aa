"""Networks run without an engine library, with convolutions compiled for this processor."""
