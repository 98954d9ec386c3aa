"""RP-Net in PyTorch, its definition, its field operations and checkpoints."""
