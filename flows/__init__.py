"""Run the pipeline with Prefect: as a flow, on a schedule, with a gate that decides on the champion."""
