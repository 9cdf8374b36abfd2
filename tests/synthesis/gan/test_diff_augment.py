import torch

from stages.synthesis.gan.diff_augment import diff_augment


def test_augmentation_is_differentiable_seeded_and_does_not_flip():
    images = torch.linspace(-1, 1, 16).expand(64, 1, 16, 16).clone().requires_grad_()
    moved = diff_augment(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved, diff_augment(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(moved, images)
    moved.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    # A ramp rises from left to right; only a hole, which is flat, may interrupt it.
    rises = (moved[..., 1:] - moved[..., :-1]).detach()
    falls = (rises < -1e-6).float().sum(-1)
    assert falls.max() <= 1
