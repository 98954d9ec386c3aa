"""RP-Net in PyTorch: network, reference implementation, field operations and checkpoints."""
