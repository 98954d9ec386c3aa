"""The coarse-to-fine loop of RP-Net and IterStop, and the stop rules of its levels."""
