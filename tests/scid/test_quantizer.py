import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from align3gr import InputError
from align3gr.scid import RQVAEConfig, RQVAEModel
from align3gr.scid.configuration_rqvae import propose_codebook_sizes
from align3gr.scid.quantizer import ResidualQuantizer, nearest_codes, rotate_gradient, sinkhorn


def quantizer(sizes=(6, 6, 6), dim=4, **options) -> ResidualQuantizer:
    torch.manual_seed(0)
    module = ResidualQuantizer(RQVAEConfig(codebook_sizes=sizes, codebook_dim=dim, **options))
    for book in module.codebooks:
        torch.nn.init.normal_(book)
    return module


def independent(ours: ResidualQuantizer, **options):
    """`ResidualVQ` of vector-quantize-pytorch with the same code books."""
    library = pytest.importorskip("vector_quantize_pytorch")
    theirs = library.ResidualVQ(
        dim=ours.config.codebook_dim,
        num_quantizers=ours.config.levels,
        codebook_size=ours.config.codebook_sizes[0],
        commitment_weight=0.25,
        **options,
    )
    for layer, book in zip(theirs.layers, ours.codebooks, strict=True):
        layer._codebook.embed.data.copy_(book.detach()[None])
    return theirs


@pytest.mark.parametrize("size", [2, 31, 256])
def test_nearest_codes_are_those_of_pytorch_and_the_first_of_equal_ones(size):
    torch.manual_seed(0)
    residual, codebook = torch.randn(500, 8), torch.randn(size, 8)
    codebook[size // 2] = codebook[0]  # equally near, wherever a row is
    codes = nearest_codes(residual, codebook)
    distance = torch.addmm(codebook.square().sum(1), residual, codebook.T, alpha=-2)
    assert codes.dtype == torch.int64 and torch.equal(codes, distance.argmin(1))
    assert (codes == 0).any() and not (codes == size // 2).any()
    exact = torch.cdist(residual.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest_codes(residual.double(), codebook.double()), exact)


def test_codes_vectors_commitment_and_gradient_are_those_of_another_library():
    ours = quantizer(codebook_update="ema")  # its loss is the commitment alone
    # quant_grad_frac 1: each level sees the gradient of the one before, so that it reaches the input once.
    theirs = independent(ours, rotation_trick=False, quant_grad_frac=1.0)
    mine = torch.randn(50, 4, requires_grad=True)
    other = mine.detach().clone().requires_grad_()
    expected, indices, commitment = theirs(other[None], freeze_codebook=True)
    quantized, codes, loss = ours(mine)
    assert torch.equal(codes, indices[0])
    assert len(codes.unique()) > 3
    torch.testing.assert_close(quantized, expected[0])
    torch.testing.assert_close(loss, commitment.sum())
    direction = torch.randn(50, 4)
    (quantized * direction).sum().backward()
    (expected[0] * direction).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)


def test_codebook_term_pulls_the_chosen_code_to_its_residual():
    ours = quantizer(sizes=(2,), dim=2)
    with torch.no_grad():
        ours.codebooks[0].copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    _, _, loss = ours(torch.tensor([[1.0, 3.0]]))
    loss.backward()
    # Mean over two numbers of (0 - 1)^2 and (0 - 3)^2, of which the code book's share is 1 and the encoder's 0.25.
    assert loss.item() == pytest.approx(1.25 * 5)
    assert ours.codebooks[0].grad.tolist() == [[-1.0, -3.0], [0.0, 0.0]]


def rotation(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The matrix that turns unit vector `source` onto `target` in their plane and leaves the rest still."""
    cosine = source @ target
    across = F.normalize(target - cosine * source, dim=0)
    plane = torch.stack([source, across], 1)
    sine = torch.sqrt(1 - cosine**2)
    turn = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    return torch.eye(len(source), dtype=source.dtype) + plane @ (turn - torch.eye(2, dtype=source.dtype)) @ plane.T


def test_rotation_trick_gives_the_code_vector_and_a_rotated_and_scaled_gradient():
    torch.manual_seed(0)
    latent = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    code, direction = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    passed = rotate_gradient(latent, code[None])
    torch.testing.assert_close(passed[0], code)
    passed[0].backward(direction)
    start = latent.detach()[0]
    matrix = rotation(F.normalize(start, dim=0), F.normalize(code, dim=0))
    torch.testing.assert_close(latent.grad[0], code.norm() / start.norm() * matrix.T @ direction)


def test_rotation_trick_is_that_of_another_library():
    library = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    ours = quantizer(estimator="rotation")
    latent = torch.randn(30, 4, requires_grad=True)
    other = latent.detach().clone().requires_grad_()
    quantized, codes, _ = ours(latent)
    total = sum(book[codes[:, level]] for level, book in enumerate(ours.codebooks)).detach()
    expected = library.rotate_to(other, total)
    torch.testing.assert_close(quantized, total)
    direction = torch.randn(30, 4)
    (quantized * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(latent.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(latent.grad, direction, atol=0.1)  # straight-through would pass it as it is


def test_a_latent_of_no_length_is_passed_straight_through():
    latent = torch.zeros(1, 3, requires_grad=True)
    passed = rotate_gradient(latent, torch.tensor([[1.0, 2.0, 2.0]]))
    assert passed.tolist() == [[1.0, 2.0, 2.0]]
    passed.backward(torch.tensor([[1.0, 0.0, -1.0]]))
    assert latent.grad.tolist() == [[1.0, 0.0, -1.0]]


def test_two_steps_of_running_means_by_hand():
    ours = quantizer(sizes=(2,), dim=1, codebook_update="ema", ema_decay=0.5)
    with torch.no_grad():
        ours.codebooks[0].copy_(torch.tensor([[0.0], [10.0]]))
    ours(torch.tensor([[1.0], [2.0], [9.0]]))
    # Counts start at 1 and sums at the code vectors; code 0 takes 1 and 2, code 1 takes 9.
    # counts: 0.5 * 1 + 0.5 * 2 = 1.5 and 0.5 + 0.5 = 1; sums: 0 + 0.5 * 3 = 1.5 and 5 + 4.5 = 9.5
    assert ours.codebooks[0].flatten().tolist() == pytest.approx([1.0, 9.5])
    ours(torch.tensor([[2.0], [2.0], [4.0]]))
    # All three to code 0: count 0.75 + 1.5 = 2.25, sum 0.75 + 4 = 4.75; code 1: 0.5 and 4.75
    assert ours.codebooks[0].flatten().tolist() == pytest.approx([4.75 / 2.25, 9.5])
    assert ours.ema_count_0.tolist() == pytest.approx([2.25, 0.5])


def test_running_means_of_codes_that_nothing_chooses_stay():
    ours = quantizer(sizes=(2,), dim=1, codebook_update="ema", ema_decay=0.5, revive_after=0)
    with torch.no_grad():
        ours.codebooks[0].copy_(torch.tensor([[0.0], [10.0]]))
    for _ in range(60):  # 0.5 ** 60 is below any fp32 floor that guards the division
        ours(torch.tensor([[1.0]]))
    assert ours.codebooks[0].flatten().tolist() == pytest.approx([1.0, 10.0])


def test_running_means_leave_no_gradient_and_stand_still_in_evaluation():
    ours = quantizer(codebook_update="ema")
    before = [book.clone() for book in ours.codebooks]
    latent = torch.randn(20, 4, requires_grad=True)
    ours.eval()(latent)
    assert all(torch.equal(book, old) for book, old in zip(ours.codebooks, before, strict=True))
    quantized, _, loss = ours.train()(latent)
    (quantized.sum() + loss).backward()
    assert all(book.grad is None and not book.requires_grad for book in ours.codebooks)
    assert not any(torch.equal(book, old) for book, old in zip(ours.codebooks, before, strict=True))


def test_training_with_running_means_goes_on_after_saving_as_if_nothing_happened(tmp_path):
    torch.manual_seed(0)
    config = RQVAEConfig(input_dim=6, codebook_sizes=(4, 4), codebook_dim=3, codebook_update="ema", ema_decay=0.9)
    model, batches = RQVAEModel(config).train(), torch.randn(6, 32, 6)
    for batch in batches[:3]:
        model(batch)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).train()
    assert again.quantizer.ema_count_0.any()
    for batch in batches[3:]:
        model(batch)
        again(batch)
    for ours, theirs in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1]), ours[0]


@pytest.mark.parametrize("update", ["loss", "ema"])
def test_codes_that_idle_are_put_on_residuals_of_the_batch(update):
    ours = quantizer(sizes=(3,), dim=2, codebook_update=update, revive_after=2, ema_decay=0.5)
    with torch.no_grad():
        ours.codebooks[0].copy_(torch.tensor([[0.0, 0.0], [500.0, 0.0], [0.0, 500.0]]))
    latent = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    rows = {tuple(row) for row in latent.tolist()}
    for _ in range(2):
        ours(latent)
        assert ours.codebooks[0][1].tolist() == [500.0, 0.0]  # idle for no more than two steps
    ours(latent)
    assert {tuple(row) for row in ours.codebooks[0][1:].tolist()} <= rows
    if update == "ema":  # and the running mean goes on from there
        assert ours.ema_count_0[1:].tolist() == [0.5, 0.5]
        assert ours.ema_sum_0[1:].tolist() == (0.5 * ours.codebooks[0][1:]).tolist()


def test_a_transport_plan_is_balanced_and_follows_the_cost():
    torch.manual_seed(0)
    plan = sinkhorn(torch.rand(40, 8), epsilon=0.1, iterations=200)
    torch.testing.assert_close(plan.sum(1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((8,), 5.0, dtype=torch.float64), rtol=1e-2, atol=0)
    # Four rows, two columns: all like column 0, the last two dislike column 1 least.
    cost = torch.tensor([[0.0, 9.0], [0.0, 8.0], [0.0, 2.0], [0.0, 1.0]])
    assert sinkhorn(cost, epsilon=0.05).argmax(1).tolist() == [0, 0, 1, 1]
    # Where the nearest are balanced already, they are what is taken.
    near = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.2, 0.9], [0.9, 0.2]])
    assert sinkhorn(near, epsilon=0.05).argmax(1).tolist() == near.argmin(1).tolist()


def test_a_transport_plan_is_that_of_scaling_the_kernel():
    torch.manual_seed(1)
    cost = torch.rand(6, 3, dtype=torch.float64)
    scaled = (cost - cost.mean()) / (cost - cost.mean()).abs().max()
    kernel = np.exp(-scaled.numpy() / 0.5)
    u, v = np.ones(6), np.ones(3)
    for _ in range(300):
        v = 2 / (kernel.T @ u)  # six rows over three columns
        u = 1 / (kernel @ v)
    np.testing.assert_allclose(sinkhorn(cost, 0.5, 300).numpy(), u[:, None] * kernel * v, rtol=1e-9)


def test_balanced_codes_in_training_and_nearest_ones_afterwards():
    ours = quantizer(sizes=(4,), dim=2, sinkhorn_epsilon=0.02, revive_after=0)
    with torch.no_grad():  # without balance nearly all rows take code 0
        ours.codebooks[0].copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [-4.0, -4.0]]))
    latent = torch.randn(200, 2)
    counts = torch.bincount(ours.train()(latent)[1][:, 0], minlength=4)
    assert counts.min() > 35 and counts.max() < 65
    nearest = torch.cdist(latent, ours.codebooks[0]).argmin(1)
    assert torch.bincount(nearest, minlength=4).max() > 150
    assert torch.equal(ours.eval()(latent)[1][:, 0], nearest)
    assert torch.equal(ours.codes(latent)[0][:, 0], nearest)
    assert torch.equal(ours.train().codes(latent)[0][:, 0], nearest)


def test_balance_with_fewer_rows_than_codes_sends_no_row_far_away():
    torch.manual_seed(0)
    model = RQVAEModel(RQVAEConfig(input_dim=4, codebook_sizes=(16, 16), codebook_dim=4, sinkhorn_epsilon=0.05))
    rows = torch.randn(6, 4)
    model.initialize_codebooks(rows)
    assert model.train()(rows.repeat(8, 1)).quantization_loss.item() < 1.0


def test_code_vectors_start_on_the_means_of_what_carries_them():
    ours = quantizer(sizes=(3, 2), dim=1)
    latent = torch.tensor([[1.0], [3.0], [10.0], [14.0], [100.0]])
    pinned = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [-1, -1]])
    ours.initialize_from_codes(latent, pinned, seed=0)
    # Level 0: means 2 and 12, and code 2, which nothing carries, on the row that is new.
    assert ours.codebooks[0].flatten().tolist() == pytest.approx([2.0, 12.0, 100.0])
    # Level 1: residuals -1, 1, -2, 2, so code 0 has the mean of -1 and -2.
    assert ours.codebooks[1].flatten().tolist() == pytest.approx([-1.5, 1.5])
    assert ours.codes(latent)[0][:4].tolist() == pinned[:4].tolist()


def test_proposed_codebooks_keep_neighbours():
    proposal = propose_codebook_sizes(1682)
    assert proposal.sizes == [32, 32, 32]
    alone = [(1 - 1 / 32) ** 1681, (1 - 1 / 1024) ** 1681]
    assert proposal.neighbours == pytest.approx([1 - share for share in alone])
    assert proposal.neighbours[1] == pytest.approx(1 - math.exp(-1681 / 1024), abs=1e-3)
    # The next size would leave most items without: 1 - e^(-1681 / 4096) = 0.34.
    assert propose_codebook_sizes(1682, min_neighbours=0.3).sizes == [64, 64, 64]


def test_proposed_codebooks_grow_with_the_catalogue_and_hold_it():
    catalogues = [1, 100, 1_000, 12_000, 100_000, 1_000_000, 100_000_000]
    sizes = [propose_codebook_sizes(items).sizes[0] for items in catalogues]
    assert sizes == sorted(sizes) and sizes[0] == 8 and sizes[-1] > sizes[2]
    assert all(size**3 >= 4 * items for size, items in zip(sizes, catalogues, strict=True))
    assert propose_codebook_sizes(4096**3 // 4).sizes == [4096] * 3
    with pytest.raises(InputError, match=r"num_items: .* raise levels"):
        propose_codebook_sizes(4096**3 // 4 + 1)
    with pytest.raises(InputError, match="levels 1"):
        propose_codebook_sizes(10, levels=1)


def test_a_code_vector_learns_from_its_own_level_alone():
    ours = quantizer(sizes=(2, 2), dim=1)
    with torch.no_grad():
        ours.codebooks[0].copy_(torch.tensor([[0.0], [100.0]]))
        ours.codebooks[1].copy_(torch.tensor([[1.0], [50.0]]))
    latent = torch.tensor([[3.0]], requires_grad=True)
    _, _, loss = ours(latent)
    loss.backward()
    # Level 0: residual 3, code 0; level 1: residual 3, code 1. Commitment: 0.25 * (2 * 3 + 2 * 2) on the latent.
    assert ours.codebooks[0].grad.flatten().tolist() == [-6.0, 0.0]
    assert ours.codebooks[1].grad.flatten().tolist() == [-4.0, 0.0]
    assert latent.grad.item() == pytest.approx(2.5)


def test_kmeans_takes_a_sample_of_many_rows(monkeypatch):
    from align3gr.scid import quantizer as module

    monkeypatch.setattr(module, "KMEANS_ROWS", 50)
    model = RQVAEModel(RQVAEConfig(input_dim=2, output_dim=2, codebook_sizes=(2,), codebook_dim=2, hidden_dims=None))
    rows = torch.cat([torch.zeros(500, 2), torch.ones(500, 2)]) + torch.randn(1000, 2) * 0.01
    model.initialize_codebooks(rows)
    centres = model.quantizer.codebooks[0].detach()
    assert torch.allclose(centres[centres[:, 0].argsort()], torch.tensor([[0.0, 0.0], [1.0, 1.0]]), atol=0.02)
    assert not torch.allclose(centres.mean(0), rows.mean(0), atol=1e-6)  # all rows would give their very mean
