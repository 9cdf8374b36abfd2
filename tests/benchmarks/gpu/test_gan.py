"""The GAN's measurements: one command, kept part by part, beside figures that mean something."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.models.inception import InceptionA, inception_v3

from benchmarks.gan_figures import frechet_distance, pooled_figures
from benchmarks.gpu import gan, gan_quality
from benchmarks.gpu.gan_quality import Settings, deal
from benchmarks.gpu.gan_tables import FIELD, quality_table
from benchmarks.gpu.inception import load_inception, pool_otherwise
from benchmarks.measuring import ROOT
from stages.errors import WinnowError
from stages.synthesis.quality import kernel_distance

FORBIDDEN = ("mlflow", "dvc", "prefect", "cleanlab", "albumentations", "imblearn", "cv2", "simplejpeg")
TINY = ["--device", "cpu", "--real", "40", "--stage-steps", "3", "--seeds", "0", "--rounds", "1"]
TINY += ["--widths", "8", "--batch-sizes", "8", "--width", "8", "--batch-size", "8", "--minutes", "0.0001"]
TINY += ["--images", "8", "--judge-images", "12", "--held-out", "12"]
TRAIN, TEST = 32, 12  # images a class


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CIFAR-10 with as many test images as density and coverage need."""
    folder = tmp_path_factory.mktemp("gan")
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "cifar10.tar.gz", "w:gz") as tar:
        for split, count in (("train", TRAIN), ("test", TEST)):
            for number in range(10 * count):
                low, content = 20 * (number % 10), io.BytesIO()
                image = rng.integers(low, low + 40, (32, 32, 3), np.uint8)
                Image.fromarray(image).save(content, "JPEG")
                member = tarfile.TarInfo(f"cifar10/{split}/class {number % 10}/{number // 10:04d}.jpg")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Few steps of judge and GAN."""
    from stages.learning import judge

    monkeypatch.setattr(judge, "_STEPS", (2, 4))
    for name in ("_LOADING", "_FEWEST"):
        monkeypatch.setattr(gan_quality, name, 2)


def lines_of(workspace: Path) -> list[dict]:
    return [json.loads(line) for line in (workspace / gan.RESULTS).read_text("utf-8").splitlines()]


def test_all_parts_in_a_process_without_the_heavy_libraries(data, tmp_path):
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({(*FORBIDDEN, 'cleanvision')!r}))\n"
        "from stages.learning import judge; judge._STEPS = (2, 4)\n"
        "from benchmarks.gpu import gan, gan_quality\n"
        "gan._WARM_UP = gan_quality._LOADING = gan_quality._FEWEST = 2\n"
        f"gan.main({[*TINY, '--data', str(data)]!r})"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert "CPU" in lines[0] and f"torch {torch.__version__}" in lines[0]
    assert "40 images of GAN training at 32×32 (3 steps of 32, width 16" in run.stdout
    for who in ("generated", "last snapshot", "held-out"):
        assert any(line.startswith(who) for line in lines)
    assert "Inception" not in run.stdout
    parts = [(row["key"]["part"], row["key"].get("step")) for row in lines_of(tmp_path)]
    assert parts == [
        ("stage", None),
        ("steps", None),
        ("quality", "plan"),
        ("quality", "training"),
        ("quality", "figures"),
    ]


def test_a_second_run_measures_nothing_and_says_the_same(data, workspace, quick, monkeypatch, capsys):
    command = [*TINY, "--data", str(data), "--parts", "quality"]
    gan.main(command)
    first = capsys.readouterr().out
    monkeypatch.setattr("stages.synthesis.gan_training.train_gan", _refuse)
    monkeypatch.setattr("stages.learning.judge.train_judge", _refuse)
    gan.main(command)
    again = capsys.readouterr().out
    assert again.splitlines()[-1] == first.splitlines()[-1]
    assert "generated" in again
    with pytest.raises(AssertionError, match="trained again"):
        gan.main([*command, "--seed", "1"])


def _refuse(*_, **__):
    raise AssertionError("trained again")


def test_a_killed_run_goes_on_with_the_steps_that_it_had_planned(data, workspace, quick, monkeypatch, capsys):
    from stages.synthesis.gan_trainer import GANTrainer

    step, taken = GANTrainer.step, []

    def killed(self, *arguments):
        # Of the training itself, not of those that find out how fast it is.
        if self.config.steps == planned and self.steps == planned // 2:
            raise KeyboardInterrupt
        taken.append(self.config.steps)
        return step(self, *arguments)

    planned = 20
    monkeypatch.setattr(gan_quality._Work, "_steps", lambda self: planned)
    monkeypatch.setattr("stages.synthesis.gan_training._CHECK_EVERY", 5)
    monkeypatch.setattr("stages.synthesis.gan_training._KEEP_SHARE", 1e9)
    monkeypatch.setattr(GANTrainer, "step", killed)
    command = [*TINY, "--data", str(data), "--parts", "quality"]
    with pytest.raises(SystemExit) as stopped:
        gan.main(command)
    assert stopped.value.code == 130
    monkeypatch.setattr(GANTrainer, "step", lambda self, *a: (taken.append("later"), step(self, *a))[1])
    gan.main(command)
    assert taken.count("later") == planned // 2
    assert "20 steps of 8 images, in more than one run" in capsys.readouterr().out
    assert not list((workspace / gan_quality.PLACE).glob("*"))


def test_parts_of_the_training_images_share_none():
    rng = np.random.default_rng(0)
    from benchmarks.cifar_images import Cifar

    images = rng.integers(0, 256, (600, 4, 4, 3), np.uint8)
    labels = np.arange(600) % 10
    cifar = Cifar(images, labels, images[:100], labels[:100], [str(k) for k in range(10)])
    settings = Settings(images=10, judge_images=20, held_out=10)
    parts = deal(cifar, settings)
    assert [set(part.class_counts) for part in parts] == [{10}, {20}, {10}]
    every = [image.tobytes() for part in parts for image in part.images]
    assert len(set(every)) == len(every) == 400
    with pytest.raises(WinnowError, match="60 training and 10 test images, asked for are 70 and 10"):
        deal(cifar, Settings(images=10, judge_images=50, held_out=10))


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20_000, 3))
    scaled = points * [1, 2, 3] + [0, 0, 4]
    # Of Gaussians with diagonal covariances: squared differences of means and of standard deviations.
    assert frechet_distance(points, scaled) == pytest.approx(16 + 1 + 4, rel=0.03)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    flat = np.zeros((20, 3))  # a generator that makes one image
    assert frechet_distance(points, flat) == pytest.approx(3, rel=0.05)


def test_pooled_figures_tell_equal_from_other_and_kid_is_of_all_pairs():
    rng = np.random.default_rng(0)
    real, same, other = (rng.normal(shift, 1, (300, 8)).astype(np.float32) for shift in (0, 0, 2))
    near, far = pooled_figures(real, same), pooled_figures(real, other)
    assert near["fid"] < far["fid"] / 20
    assert near["density"] > 0.8 > far["density"]
    assert near["coverage"] > 0.9 > far["coverage"]
    assert far["kid"] == pytest.approx(kernel_distance(other, real))


def test_inception_pools_as_the_fid_network_does(tmp_path):
    block = InceptionA(4, pool_features=2).eval()
    images = torch.rand(1, 4, 5, 5)
    seen = []
    block.branch_pool.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(images)
    pool_otherwise(block, lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    with torch.inference_mode():
        block(images)
        block(images)
    torch.testing.assert_close(seen[1][..., 1:-1, 1:-1], seen[0][..., 1:-1, 1:-1])
    torch.testing.assert_close(seen[1][..., 0, 0], images[..., :2, :2].mean((2, 3)))
    torch.testing.assert_close(seen[2], seen[1])


def test_inception_of_either_kind_is_read_and_told_apart(tmp_path):
    path = tmp_path / "weights.pth"
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    torch.save(network.state_dict(), path)
    loaded = load_inception(path, torch.device("cpu"))
    features = loaded.embed(images)
    assert loaded.is_fid
    assert features.shape == (2, 2048)
    network.fc = nn.Identity()
    pixels = functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, (299, 299), mode="bilinear"
    )
    with torch.inference_mode():
        plain = network.eval()(pixels).numpy()
    assert np.abs(plain - features).max() > 0.01 * plain.max()  # it pools otherwise
    state = inception_v3(num_classes=1000, aux_logits=True, init_weights=False).state_dict()
    torch.save(state, path)
    assert not load_inception(path, torch.device("cpu")).is_fid


@pytest.mark.parametrize("content", [b"no weights", None])
def test_a_file_that_is_no_inception_is_an_error_of_one_line(content, tmp_path):
    path = tmp_path / "weights.pth"
    if content is None:
        torch.save({"fc.bias": torch.zeros(1008)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(WinnowError, match=r"weights.pth is no state dict of Inception-v3 \("):
        load_inception(path, torch.device("cpu"))


def test_published_figures_stand_beside_the_fid_network_alone():
    values = dict.fromkeys(("fid", "kid", "density", "coverage"), 0.5)
    by_class = {name: [0.25] for name in ("kid", "density", "coverage", "recognised")}
    row = {
        "settings": vars(Settings()),
        "classes": ["a"],
        "training": None,
        "figures": {
            "by_class": dict.fromkeys(("generated", "held-out"), by_class),
            "pooled": {"generated": values},
        },
        "inception": {"key": {"file": ["w.pth", 1]}, "pooled": {"generated": values}, "is_fid": True},
    }
    said = quality_table(row)
    assert all(f"{name} {fid}" in said for name, fid in FIELD.items())
    row["inception"]["is_fid"] = False
    assert "do not compare with published ones" in quality_table(row)
    assert "BigGAN" not in quality_table(row)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cpu"], "there is no cifar10.tar.gz in --data"),
        (["--device", "cpu", "--inception", "none.pth"], "--inception none.pth: there is no such file"),
        ([], "there is no NVIDIA GPU here"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments, said, workspace, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gan.main([*arguments, "--data", str(workspace)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
