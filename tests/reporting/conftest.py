"""What a finished run leaves under reports/, small and with names that want to be markup."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from gate_record import decided, judged, write_quality

from stages.reporting.figures import Section, gallery

BLACK = np.zeros((2, 8, 8, 1), np.uint8)
NASTY = "<img src=x onerror=alert(1)>\"'&"


def interval(value, half=0.02):
    return {"value": value, "low": round(value - half, 6), "high": round(value + half, 6)}


def make_metrics(gain=0.1):
    names = ("macro_f1", "balanced_accuracy", "worst_class_recall", "accuracy", "expected_calibration_error")
    models = {name: {m: interval(0.5) for m in names} for name in ("baseline", "train")}
    models["finetune"] = {m: interval(0.5 + gain) for m in names}
    return {
        "test_set_hash": "0123456789abcdef",
        "test_images": 40,
        "models": models,
        "gain": {
            "train": {m: interval(0.0) for m in names},
            "finetune": {m: interval(gain) for m in names},
        },
        "noise": {"precision": 0.8, "recall": 0.75, "f1": 0.774194, "planted": 20, "flagged": 19},
        "samples": {
            "ingested": 50,
            "kept": 40,
            "dropped": 10,
            "synthesised": 4,
            "synthesised_by": {"gan": 4},
        },
    }


@pytest.fixture
def reports(tmp_path):
    """A `reports` folder with something from every stage; the first class is called `NASTY`."""
    root = tmp_path / "reports"
    for stage in ("ingest", "detect_noise", "curate", "synthesize", "baseline", "train", "evaluate"):
        (root / stage).mkdir(parents=True)
    (root / "evaluate/metrics.json").write_text(json.dumps(make_metrics()), "utf-8")
    settings = {"classes": 2, "confidence": 0.95, "resamples": 2000, "calibration_bins": 15}
    (root / "evaluate/summary.json").write_text(json.dumps(settings), "utf-8")
    treatments = pd.DataFrame(
        {
            "class": [NASTY, "NA"],
            **{name: [3, 2] for name in ("given", "dropped", "relabelled", "reweighted", "gained", "real")},
            "augmented": [0, 4],
            "synthesised": [0, 4],
            "synthesised_by": ["", "random 4"],
        }
    )
    treatments.to_csv(root / "evaluate/treatments.csv", index=False)
    per_class = [
        (m, c, 20, 0.5, r, 0.5) for m in ("baseline", "finetune") for c, r in ((NASTY, 0.9), ("NA", 0.2))
    ]
    columns = ["model", "class", "support", "precision", "recall", "f1"]
    pd.DataFrame(per_class, columns=columns).to_csv(root / "evaluate/per_class.csv", index=False)
    rows = {"class": [NASTY, NASTY, "NA"], "split": ["train", "test", "train"], "count": [3, 20, 2]}
    pd.DataFrame(rows).to_csv(root / "ingest/class_counts.csv", index=False)
    refused = {"source": [f"a/{NASTY}.png"], "reason": ["not_an_image"], "detail": ["text"]}
    pd.DataFrame(refused).to_parquet(root / "ingest/quarantine.parquet")
    (root / "ingest/summary.json").write_text(
        json.dumps({"images": 45, "classes": {NASTY: {"train": 3}}}), "utf-8"
    )
    quality = {NASTY: decided("not_needed", "3 real images"), "NA": decided("fallback", "2 real images")}
    write_quality(root, quality)
    history = {"epoch": [1.0, 2.0], "train_loss": [1.0, 0.5], "val_loss": [np.nan, np.nan]}
    pd.DataFrame(history).to_csv(root / "baseline/history.csv", index=False)
    for stage in ("detect_noise", "curate", "augment", "synthesize"):
        (root / "pages" / stage).mkdir(parents=True)
    gallery([Section("", BLACK, ["a", "b"])], root / "pages/detect_noise/label_errors.png")
    (root / "pages/curate/broken.png").write_bytes(b"<script>alert(1)</script>")
    return root


@pytest.fixture
def findings(reports):
    """`reports` with the summaries of `detect_noise` and `curate`, and pictures of both."""
    root = reports
    split = {"samples": 10, "label_error": 3, "outlier": 1, "dark": 0}
    found = {"splits": {"train": split, "test": split}, "non_iid": 0.001}
    found["checks"] = {"label_error": "on", "outlier": "on", "dark": f"9 of 10 are {NASTY}"}
    (root / "detect_noise/summary.json").write_text(json.dumps(found), "utf-8")
    done = {"kinds": {"label_error": {"drop": 2, "relabel": 5}}, "rare_classes": [NASTY]}
    done |= {"protection": {"rare_class": 4}, "outside_training": {"test": 3}}
    (root / "curate/summary.json").write_text(json.dumps(done), "utf-8")
    row = {"split": "train", "kind": "label_error", "protection": "", "action": "drop", "class": "007"}
    pd.DataFrame([row | {"samples": 2}]).to_csv(root / "curate/reasons.csv", index=False)
    for name in ("detect_noise/transition", "detect_noise/another", "curate/class_balance"):
        picture = (root / "pages/detect_noise/label_errors.png").read_bytes()
        (root / "pages" / f"{name}.png").write_bytes(picture)
    return root


@pytest.fixture
def made(reports):
    """`reports` with what a GAN, its gate and augmentation leave."""
    root = reports
    notes = ["Step 120 gave losses that are not numbers: went back to step 100."]
    gan = {"trained_on": ["007", NASTY], "steps": 800, "batch_size": 16, "notes": notes}
    quality = {
        "007": judged("accepted", "52 of 64 passed"),
        NASTY: judged("fallback", "farther from real images than another class", passed=False),
        "NA": decided("not_needed"),
    }
    write_quality(root, quality, gan=gan)
    (root / "augment").mkdir()
    columns = ["transform", "tried", "recognised", "recognised_before", "survival"]
    columns += ["worst_class", "worst_survival", "decision"]
    rows = [
        ("Affine", 100, 88, 90, 88 / 90, "007", 0.9, "kept"),
        (NASTY, 100, 27, 90, 0.3, "007", 0.1, "left_out"),
        ("policy", 100, 81, 90, 0.9, "007", 0.8, "kept"),
    ]
    pd.DataFrame(rows, columns=columns).to_csv(root / "augment/survival.csv", index=False)
    scores = [(step, name, step / 1000) for step in (600, 800) for name in ("007", NASTY)]
    pd.DataFrame(scores, columns=["step", "class", "score"]).to_csv(
        root / "synthesize/gan_scores.csv", index=False
    )
    (root / "pages/synthesize/progress").mkdir()
    names = ["augment/preview", "augment/transforms", "synthesize/refused", "synthesize/samples"]
    names += [f"synthesize/progress/step_{step:06d}" for step in (80, 800)]
    for name in names:
        picture = (root / "pages/detect_noise/label_errors.png").read_bytes()
        (root / "pages" / f"{name}.png").write_bytes(picture)
    return root
