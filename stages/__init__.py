"""The pipeline: one module a stage, in the order of `dvc.yaml`, and the rooms they use."""
