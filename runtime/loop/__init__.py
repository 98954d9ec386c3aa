"""The coarse-to-fine loop of RP-Net and IterStop, and the rules by which a level of it stops."""
