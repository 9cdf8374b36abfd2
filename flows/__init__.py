"""Prefect: the pipeline as a flow, its schedule, and the gate that decides on the champion."""
