"""How a stage behaves as a process: parameters, DVC lineage, MLflow records, several processes."""
