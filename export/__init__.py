"""From a checkpoint to a published engine set: ONNX graphs, the parity gate and the manifest."""
