"""Networks run by TensorRT-RTX or TensorRT."""
