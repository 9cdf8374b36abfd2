"""Use a trained model: encoded images in, predictions out; MLflow's pyfunc and ONNX."""
