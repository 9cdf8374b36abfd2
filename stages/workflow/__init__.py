"""Run a stage as a process: parameters, DVC lineage, MLflow records, several processes."""
