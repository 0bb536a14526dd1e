"""Export of networks: as ONNX models in a chosen precision, or as TensorRT engines."""
