"""Decide about each sample: policies, people's reviews, and the ledger that records every decision."""
