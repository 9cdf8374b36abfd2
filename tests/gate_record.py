"""What `synthesize` writes to quality.json, made by hand."""

from __future__ import annotations

import json


def decided(decision, reason="", *, method="random", **more):
    """A class of quality.json, without candidates unless `more` brings some."""
    row = {"real": 30, "target": 40, "requested": 10, "candidates": 0, "refused": {}, "accepted": 0}
    row |= {"added": 10, "method": method, "decision": decision, "reason": reason, "snapshot": None}
    if decision == "not_needed":
        row |= {"requested": 0, "added": 0, "method": "none"}
    return row | {"measures": {}, "nearness": None} | more


def judged(decision, reason="", *, passed=True, least=0.6, **more):
    """A class of quality.json whose candidates the gate judged."""
    measures = {
        "agreement": {"value": 0.91, "real": 0.97, "limit": 0.485, "passed": True},
        "kid": {"value": 0.2 if passed else 1.7, "real": 0.01, "limit": 0.5, "passed": passed},
    }
    near = {"min": least, "median": 0.9, "real_min": 0.4} if decision != "fallback" else None
    row = {"candidates": 64, "refused": {"agreement": 5, "copy_of_train": 7, "stray": 0}, "accepted": 52}
    row |= {"measures": measures, "nearness": near, "snapshot": 800}
    method = "random" if decision == "fallback" else "gan"
    return decided(decision, reason, method=method, **(row | more))


def write_quality(root, classes, **head):
    head = {"method": "gan", "fallback": "random", "neighbors_in": "pixels", "gan": None} | head
    (root / "synthesize/quality.json").write_text(json.dumps(head | {"classes": classes}), "utf-8")
