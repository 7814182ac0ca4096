"""From a PyTorch checkpoint to one fused ONNX graph. Imports torch and onnx."""
