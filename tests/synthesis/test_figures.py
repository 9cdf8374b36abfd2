import numpy as np
from PIL import Image

from stages.synthesis.figures import Line, save_montage


def test_a_montage_shows_the_images_and_repeats_its_bytes(tmp_path):
    red = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    grey = np.full((1, 8, 8, 1), 77, np.uint8)
    for name in ("a", "b"):
        lines = [Line("one $ of $ them", [red, grey])]
        save_montage(tmp_path / f"{name}.png", "title", lines, [3, 2], ["left", "right"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(1).sum() > 2 * 24 * 24
    assert (pixels == [77, 77, 77]).all(1).sum() > 24 * 24


def test_an_empty_one_is_still_a_picture(tmp_path):
    save_montage(tmp_path / "empty.png", "Nothing was made", [], [3], ["left"])
    assert Image.open(tmp_path / "empty.png").size[0] > 100
