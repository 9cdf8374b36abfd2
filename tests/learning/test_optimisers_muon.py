import torch
from torch import nn

from stages.learning.optimisers import Muon, matrices_of, orthogonalised


def test_singular_values_come_near_one_and_singular_vectors_stay():
    matrices = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(0))
    for batch in (matrices, matrices.mT.contiguous()):
        result = orthogonalised(batch)
        assert (result.shape, result.dtype) == (batch.shape, torch.float32)
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.5
        assert values.max() < 1.3
        u, _, v = torch.linalg.svd(batch, full_matrices=False)
        cosine = (result * (u @ v)).sum((1, 2)) / result.norm(dim=(1, 2)) / (u @ v).norm(dim=(1, 2))
        assert (cosine > 0.95).all()


def test_a_gradient_of_zeros_moves_nothing():
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_a_kernel_moves_as_the_matrix_it_is_whatever_its_memory_and_its_company():
    values = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    gradients = torch.randn(3, 8, 3, 3, 3, generator=torch.Generator().manual_seed(1))

    def moved(
        *shapes: tuple[int, ...], memory: torch.memory_format = torch.contiguous_format
    ) -> torch.Tensor:
        own = [nn.Parameter(values.clone().reshape(shape)) for shape in shapes]
        if len(shapes[0]) == 4:
            own[0] = nn.Parameter(own[0].detach().to(memory_format=memory))
        optimiser = Muon([{"params": own, "lr": 0.1}], momentum=0.9, weight_decay=0.5)
        for gradient in gradients:
            for parameter in own:
                parameter.grad = gradient.reshape(parameter.shape).clone()
            optimiser.step()
        return own[0].detach().reshape(8, 27)

    alone = moved((8, 27))
    assert not torch.equal(alone, values.reshape(8, 27))
    torch.testing.assert_close(moved((8, 3, 3, 3)), alone)
    torch.testing.assert_close(moved((8, 3, 3, 3), memory=torch.channels_last), alone)
    torch.testing.assert_close(moved((8, 27), (8, 3, 3, 3), (8, 27)), alone)


def test_a_step_is_as_long_as_adams():
    weight = nn.Parameter(torch.zeros(64, 128))
    weight.grad = 1e-3 * torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [weight], "lr": 0.1}], momentum=0.9, weight_decay=0.0).step()
    assert 0.1 < weight.detach().square().mean().sqrt() / 0.1 < 0.3


def test_it_decays_weights_by_rate_times_decay():
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([{"params": [weight], "lr": 0.1}], momentum=0.9, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


def test_matrices_are_what_multiplies_and_not_what_is_looked_up():
    network = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "convolution": nn.Conv2d(3, 4, 3),
            "norm": nn.LayerNorm((4, 4)),
            "linear": nn.Linear(4, 4),
            "recurrent": nn.LSTM(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
        }
    )
    network.register_parameter("token", nn.Parameter(torch.zeros(1, 1, 4)))
    chosen = {id(parameter) for parameter in matrices_of(network)}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in chosen}
    assert names == {
        "convolution.weight",
        "linear.weight",
        "recurrent.weight_ih_l0",
        "recurrent.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }
