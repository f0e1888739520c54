"""From a trained student to ONNX graphs, gates and a verified bundle."""
