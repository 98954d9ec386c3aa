"""RP-Net in PyTorch: network, losses, data and the training loop. Never imported by `runtime`."""

from runtime.host.cache_folder import keep_in_cache

# torch's compiler creates its cache folder even if nothing is compiled.
keep_in_cache("TORCHINDUCTOR_CACHE_DIR", "torch")
