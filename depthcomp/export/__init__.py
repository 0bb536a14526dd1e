"""A network in the form that runs elsewhere: an ONNX model, in the precision that is wanted, or a TensorRT engine."""
