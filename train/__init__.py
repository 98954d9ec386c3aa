"""RP-Net in PyTorch: network, losses, data and the training loop. Never imported by `runtime`."""
