import numpy as np
import pytest
import torch

from stages.learning.recipe import Recipe
from stages.learning.transforms import Moves, augment, blend, draw_mixing, draw_moves, move

COUNT = 12


def recipe(**choices) -> Recipe:
    return Recipe(1, 1, 1, 0.1, **choices)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mix(
    pixels: torch.Tensor, how: Recipe, numbers: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mix a batch with itself in another order, as the feed does; with the partners and the shares."""
    size = (pixels.shape[2], pixels.shape[3]) if pixels.ndim == 4 else (1, 1)
    mixing = draw_mixing(len(pixels), size, how, numbers)
    return blend(pixels, pixels[mixing.partner], mixing), mixing.partner, mixing.lam


def random_images(channels: int, height: int = 7, width: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (COUNT, height, width, channels), dtype=torch.uint8, generator=generator(9))


def moved_slowly(images: torch.Tensor, moves: Moves, side: int) -> torch.Tensor:
    """Image by image and pixel by pixel."""
    count, height, width, _ = images.shape
    out = images.clone()
    for n in range(count):
        for row in range(height):
            for column in range(width):
                seen = column
                if moves.flipped is not None and moves.flipped[n]:
                    seen = width - 1 - column
                down, across = (0, 0) if moves.offsets is None else moves.offsets[:, n].tolist()
                from_row = min(max(row + down, 0), height - 1)
                from_column = min(max(seen + across, 0), width - 1)
                out[n, row, column] = images[n, from_row, from_column]
        if moves.centres is not None:
            top, left = (moves.centres[:, n] - side // 2).tolist()
            mean = out[n].float().mean((0, 1)).round().to(images.dtype)
            out[n, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = mean
    return out


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "choices",
    [
        {"shift": 2},
        {"flip": True},
        {"cutout": 3},
        {"shift": 9, "flip": True},  # further than the image is wide
        {"shift": 1, "flip": True, "cutout": 4},
        {"cutout": 20},  # larger than the image
        {},
    ],
    ids=str,
)
def test_whole_batches_are_changed_as_image_by_image(channels: int, choices: dict):
    images, how = random_images(channels), recipe(**choices)
    before = images.clone()
    moves = draw_moves(COUNT, (7, 5), how, generator())
    out = augment(images, how, generator())
    assert out.dtype == torch.uint8
    assert torch.equal(out, moved_slowly(images, moves, how.cutout))
    assert torch.equal(images, before)
    assert torch.equal(out, augment(images, how, generator()))
    if choices and how.cutout < 7:
        assert not torch.equal(out, augment(images, how, generator(1)))


def test_shift_and_flip_draw_what_they_always_drew():
    images, how = random_images(1), recipe(shift=2, flip=True)
    numbers = generator()
    offsets = torch.randint(-2, 3, (2, COUNT, 1), generator=numbers)
    rows = (torch.arange(7) + offsets[0]).clamp(0, 6)
    columns = (torch.arange(5) + offsets[1]).clamp(0, 4)
    expected = images[torch.arange(COUNT)[:, None, None], rows[:, :, None], columns[:, None, :]]
    flipped = torch.rand(COUNT, generator=numbers) < 0.5
    expected = torch.where(flipped[:, None, None, None], expected.flip(2), expected)
    used = generator()
    assert torch.equal(augment(images, how, used), expected)
    assert torch.equal(used.get_state(), numbers.get_state())


def test_some_rows_of_a_batch_are_changed_as_in_the_whole():
    images, how = random_images(3), recipe(shift=2, flip=True, cutout=3, cutmix=1.0)
    moves = draw_moves(COUNT, (7, 5), how, generator())
    whole, part = move(images, moves, how), slice(4, 9)
    assert torch.equal(move(images[part], moves[part], how), whole[part])
    pixels = whole.permute(0, 3, 1, 2).float()
    mixing = draw_mixing(COUNT, (7, 5), how, generator())
    mixed = blend(pixels, pixels[mixing.partner], mixing)
    partners = pixels[mixing.partner[part]]
    assert torch.equal(blend(pixels[part], partners, mixing[part]), mixed[part])


def test_views_of_features_are_flipped_as_images_are():
    """N×1×V×D: what a head by itself is trained on."""
    features = torch.randn(COUNT, 1, 2, 16, generator=generator())
    out = augment(features, recipe(flip=True), generator(1))
    first = out[:, 0, 0]
    either = [(first == features[:, 0, view]).all(1) for view in (0, 1)]
    assert (either[0] ^ either[1]).all()
    assert either[1].any()
    assert either[0].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_mixup_is_the_weighted_mean_of_two_images(channels: int):
    pixels = torch.randn(COUNT, channels, 7, 5, generator=generator(3))
    mixed, partner, lam = mix(pixels, recipe(mixup=0.4), generator())
    assert sorted(partner.tolist()) == list(range(COUNT))
    assert lam.dtype == torch.float32
    assert len(set(lam.tolist())) == COUNT
    for n in range(COUNT):
        expected = lam[n] * pixels[n] + (1 - lam[n]) * pixels[partner[n]]
        torch.testing.assert_close(mixed[n], expected)
    again = mix(pixels, recipe(mixup=0.4), generator())
    assert all(torch.equal(one, other) for one, other in zip((mixed, partner, lam), again, strict=True))


def test_mixup_takes_what_is_no_image():
    features = torch.randn(COUNT, 16, generator=generator(3))
    mixed, partner, lam = mix(features, recipe(mixup=1.0), generator())
    torch.testing.assert_close(mixed, lam[:, None] * features + (1 - lam[:, None]) * features[partner])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 12), (1, 1), (2, 9)])
def test_cutmix_takes_a_box_and_its_labels_weigh_what_it_shows(channels: int, size: tuple[int, int]):
    count = 200
    # Each image in a colour of its own: what comes from whom can be counted.
    pixels = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, channels, *size)
    how = recipe(cutmix=1.0)
    mixed, partner, lam = mix(pixels, how, generator())
    mixing = draw_mixing(count, size, how, generator())
    for n in range(count):
        expected = pixels[n].clone()
        top, left = mixing.corner[:, n].tolist()
        down, across = mixing.sides[:, n].tolist()
        assert top + down <= size[0]
        assert left + across <= size[1]
        expected[:, top : top + down, left : left + across] = partner[n]
        assert torch.equal(mixed[n], expected)
        if partner[n] != n:
            own = (mixed[n] == n).float().mean()
            assert lam[n].item() == pytest.approx(own.item(), abs=1e-6)
    if size[0] > 2:
        assert 0.05 < lam.quantile(0.1) < lam.quantile(0.9) <= 1


def test_the_share_of_mixtures_follows_alpha():
    """Beta(α, α) has the mean 1/2 and the variance 1 / (4 · (2α + 1))."""
    for alpha in (0.2, 1.0, 8.0):
        lam = draw_mixing(20000, (1, 1), recipe(mixup=alpha), generator()).lam
        assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
        assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_with_both_each_batch_gets_one_of_them():
    numbers, how = generator(), recipe(mixup=0.2, cutmix=1.0)
    boxes = [draw_mixing(4, (8, 8), how, numbers).corner is not None for _ in range(100)]
    assert 25 < sum(boxes) < 75


def test_pixels_stay_in_channels_last_memory():
    pixels = torch.randn(COUNT, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for how in (recipe(mixup=1.0), recipe(cutmix=1.0)):
        assert mix(pixels, how, generator())[0].is_contiguous(memory_format=torch.channels_last)


def test_flips_mirror_half_of_the_images():
    images = torch.zeros(400, 1, 2, 1, dtype=torch.uint8)
    images[:, :, 0] = 1
    out = augment(images, recipe(flip=True), generator())
    assert np.isclose(out[:, 0, 1, 0].float().mean(), 0.5, atol=0.08)
