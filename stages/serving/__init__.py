"""A trained model at work: encoded images in, predictions out; MLflow's pyfunc and ONNX."""
