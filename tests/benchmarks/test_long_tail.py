"""The long-tailed benchmark: its data, its arms, its table, and that it goes on where it was."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import long_tail as benchmark
from benchmarks.cifar_images import Cifar, LongTail, long_tail, read_cifar10
from benchmarks.long_tail_arms import ARMS, GANSettings, arm_settings, treated
from benchmarks.long_tail_table import paired_difference, table
from stages.errors import WinnowError

CLASSES = [f"class {number}" for number in range(10)]
GATE = {
    "min_agreement": 0.5,
    "copy_quantile": 0.05,
    "min_accepted": 0.3,
    "min_density": 0.5,
    "min_coverage": 0.5,
    "min_diversity": 0.5,
    "max_kid": 0.5,
}


@pytest.fixture(scope="module")
def cifar() -> Cifar:
    """10 classes of 280 training and 4 test images, each image unlike all others."""
    rng = np.random.default_rng(0)
    labels, test_labels = np.repeat(np.arange(10), 280), np.repeat(np.arange(10), 4)
    images, test_images = (rng.integers(0, 256, (n, 8, 8, 3), np.uint8) for n in (2800, 40))
    return Cifar(images, labels, test_images, test_labels, CLASSES)


@pytest.fixture(scope="module")
def tail(cifar: Cifar) -> LongTail:
    return long_tail(cifar, largest=50, ratio=10, seed=0)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive like CIFAR-10's with 10 classes of 30 training and 2 test images, in an empty workspace."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    path = tmp_path / "cifar10.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for split, count in (("train", 30), ("test", 2)):
            for number in range(10 * count):
                content = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(content, "JPEG")
                member = tarfile.TarInfo(f"cifar10/{split}/{CLASSES[number % 10]}/{number // 10:04d}.jpg")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)
    return path


def test_the_tail_is_exponential_and_its_order_follows_from_the_seed(cifar: Cifar):
    first, again, other = (long_tail(cifar, largest=50, ratio=50, seed=seed) for seed in (0, 0, 1))
    expected = [50, 32, 21, 14, 9, 6, 4, 2, 2, 1]
    for each in (first, other):
        assert sorted(each.train.class_counts, reverse=True) == expected
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert first.train.class_counts.tolist() != other.train.class_counts.tolist()


def test_validation_is_a_tenth_as_skewed_and_no_image_is_in_two_parts(cifar: Cifar):
    parts = long_tail(cifar, largest=50, ratio=10, seed=3, development=True)
    order = np.argsort(parts.train.class_counts)
    counts = parts.val.class_counts[order]
    assert (counts[0], counts[-1]) == (1, 5)
    assert (np.diff(counts) >= 0).all()
    assert parts.test.class_counts.tolist() == [200] * 10
    ids = [set(view.sample_ids) for view in (parts.train, parts.val, parts.test)]
    assert len(ids[0] | ids[1] | ids[2]) == sum(len(part) for part in ids)


def test_it_is_scored_on_the_test_images_unless_settings_are_chosen(cifar: Cifar, tail: LongTail):
    np.testing.assert_array_equal(tail.test.images, cifar.test_images)


def test_more_images_than_there_are_is_an_error(cifar: Cifar):
    with pytest.raises(WinnowError, match="there are only 280"):
        long_tail(cifar, largest=270, ratio=10, seed=0)


@pytest.mark.parametrize("name", ["random", "smote", "augmentation_to_majority"])
def test_arms_that_fill_up_give_every_class_the_same_number(tail: LongTail, tmp_path: Path, name: str):
    view = treated(tail, ARMS[name], GANSettings(), GATE, seed=0, device="cpu", keep_in=tmp_path / "gan").view
    assert view.class_counts.tolist() == [50] * 10
    np.testing.assert_array_equal(view.images[: len(tail.train)], tail.train.images)


def test_made_images_are_limited_and_weigh_what_the_arm_says(tail: LongTail, tmp_path: Path):
    arm = ARMS["augmentation"]
    made = treated(tail, arm, GANSettings(), GATE, seed=0, device="cpu", keep_in=tmp_path / "gan")
    real = tail.train.class_counts
    np.testing.assert_array_equal(made.view.class_counts, np.minimum(50, real * 6))
    weights = made.view.weights
    assert set(weights[: real.sum()]) == {1.0}
    assert set(weights[real.sum() :]) == {np.float32(arm.weight)}
    assert made.made == {"augment": len(weights) - real.sum()}


def test_class_weights_even_out_what_classes_weigh(tail: LongTail, tmp_path: Path):
    view = treated(
        tail, ARMS["class_weights"], GANSettings(), GATE, seed=0, device="cpu", keep_in=tmp_path
    ).view
    mass = np.bincount(view.labels, weights=view.weights)
    np.testing.assert_allclose(mass, mass[0], rtol=1e-5)


def test_the_gans_arm_gets_validation_and_the_gate_that_it_is_to_have(
    tail: LongTail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from stages.synthesis import oversample

    seen = []

    def spy(real, quota, targets, recipe, **others):
        seen.append((quota, recipe, others))
        simple = oversample.OversamplingConfig("random", "random", 50, recipe.gan, recipe.gate)
        return original(real, quota, targets, simple, seed=0)

    original = oversample.oversample
    monkeypatch.setattr(oversample, "oversample", spy)
    keep_in = tmp_path / "gan"
    made = treated(tail, ARMS["gan"], GANSettings(), GATE, seed=0, device="cpu", keep_in=keep_in)
    assert set(made.decisions) == {CLASSES[i] for i in np.flatnonzero(tail.train.class_counts < 50)}
    quota, recipe, others = seen[0]
    real = tail.train.class_counts
    np.testing.assert_array_equal(quota, np.minimum(50 - real, real))
    assert others["beside"].validation is tail.val
    assert others["keep_in"] == keep_in
    assert (recipe.method, recipe.fallback, recipe.min_real_per_class) == ("gan", "random", 50)
    assert recipe.gate.min_density == GATE["min_density"]


def test_without_the_gate_all_that_the_gan_makes_is_taken(tail: LongTail, tmp_path: Path):
    gan = GANSettings(steps=2, batch_size=8, latent_dim=4, width=8, snapshots=1, min_real_per_class=20)
    made = treated(tail, ARMS["gan_ungated"], gan, GATE, seed=0, device="cpu", keep_in=tmp_path / "gan")
    real = tail.train.class_counts
    quota = np.minimum(50 - real, real)
    assert made.made == {"random": quota[real < 20].sum(), "gan": quota[real >= 20].sum()}
    np.testing.assert_array_equal(made.view.class_counts, real + quota)


def test_results_are_told_apart_by_all_that_an_arm_follows_from():
    gan = GANSettings()
    longer = GANSettings(steps=gan.steps + 1)
    stricter = GATE | {"min_agreement": 0.9}
    assert arm_settings(ARMS["gan"], gan, GATE) != arm_settings(ARMS["gan"], longer, GATE)
    assert arm_settings(ARMS["gan"], gan, GATE) != arm_settings(ARMS["gan"], gan, stricter)
    assert arm_settings(ARMS["none"], gan, GATE) == arm_settings(ARMS["none"], longer, stricter)
    assert "policy" in arm_settings(ARMS["augmentation"], gan, GATE)


def test_it_goes_on_where_it_was(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda jobs, context: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(benchmark, "load_params", lambda path: _Params())
    arguments = ["--data", str(archive.parent), "--out", "results.jsonl", "--largest", "20", "--ratio", "10"]
    arguments += ["--steps", "2", "--batch-size", "8", "--seeds", "0", "1"]
    benchmark.main([*arguments, "--arms", "none"])
    benchmark.main([*arguments, "--arms", "none", "balanced_softmax"])
    lines = Path("results.jsonl").read_text().splitlines()
    assert [json.loads(line)["arm"] for line in lines] == ["none"] * 2 + ["balanced_softmax"] * 2
    assert "| balanced_softmax | 2 |" in capsys.readouterr().out
    # other settings are another result
    benchmark.main([*arguments, "--arms", "none", "--learning-rate", "0.1", "--seeds", "0"])
    assert len(Path("results.jsonl").read_text().splitlines()) == 5
    row = json.loads(lines[0])
    assert row["balanced_accuracy"] == pytest.approx(np.mean(list(row["recalls"].values())))
    assert list(row["real"].values()) == [20, 15, 12, 9, 7, 6, 4, 3, 3, 2]


class _Params:
    """As much of the parameters as the benchmark reads."""

    class synthesize:  # noqa: N801
        class gate:  # noqa: N801
            @staticmethod
            def model_dump() -> dict[str, float]:
                return GATE


def test_without_data_it_says_so_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    benchmark.main(["--data", str(tmp_path), "--out", str(tmp_path / "results.jsonl")])
    assert "skipped: no cifar10.tar.gz" in capsys.readouterr().out
    assert not (tmp_path / "results.jsonl").exists()


def test_a_line_that_is_no_result_is_named(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"arm": "none", "settings": {}}\nnonsense\n')
    plan = benchmark.Plan(tmp_path, benchmark.Settings(), GANSettings(), GATE)
    with pytest.raises(WinnowError, match=r"results\.jsonl:2 is no result"):
        benchmark.finished(path, plan)


def test_the_archive_is_read_as_it_is_laid_out(archive: Path):
    data = read_cifar10(archive)
    assert data.classes == CLASSES
    assert np.bincount(data.labels).tolist() == [30] * 10
    assert data.test_images.shape == (20, 32, 32, 3)


def test_differences_are_paired():
    scores, others = np.array([0.5, 0.6, 0.9]), np.array([0.4, 0.5, 0.8])
    mean, low, high = paired_difference(scores, others)
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))
    mean, low, high = paired_difference(scores, np.array([0.5, 0.4, 0.8]))
    # standard deviation .1, t = 4.303 at two degrees of freedom
    assert (mean, low, high) == pytest.approx((0.1, 0.1 - 0.2484, 0.1 + 0.2484), abs=1e-4)
    assert np.isnan(paired_difference(scores[:1], others[:1])[1])


def result(arm: str, seed: int, score: float) -> dict:
    return {"arm": arm, "seed": seed, "balanced_accuracy": score, "worst_recall": score / 2}


def test_the_table_compares_on_common_seeds_with_none_and_with_the_best_that_has_all():
    rows = [result("none", 0, 0.4), result("none", 1, 0.5)]
    rows += [result("smote", 0, 0.5), result("smote", 1, 0.6), result("gan", 1, 0.9)]
    lines = table(rows, ["none", "smote", "gan", "random"], [0, 1]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| none", "| **smote**", "| gan"]
    assert "+0.100 (+0.100 to +0.100)" in lines[3]
    assert "| gan | 1 | 0.900 | +0.400 | +0.300 | 0.450 | +0.200 | +0.150 |" in lines[4]
