"""Residual quantisation: a vector becomes a sum of code vectors, one from each level's codebook (Lee et al. 2022)."""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from align3gr.scid.configuration_rqvae import RQVAEConfig

# Where a code vector is put that nothing shall choose.
FAR_AWAY = 1e3
KMEANS_ROWS = 100_000


def nearest_codes(residual: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest code vector, the first of equally near ones.

    Shapes: `(batch, dim)`, `(codes, dim)` -> `(batch,)` int64.
    """
    # |r - c|^2 without |r|^2, which is the same for all codes: one matrix product and no (batch, codes, dim) tensor.
    distance = torch.addmm(codebook.square().sum(1), residual, codebook.T, alpha=-2)
    if distance.device.type == "cpu" and distance.dtype == torch.float32:
        # On rows of 256 numbers NumPy's argmin takes a quarter of the time of PyTorch's; both take the first.
        return torch.from_numpy(distance.detach().numpy().argmin(1))
    return distance.argmin(1)


@torch.no_grad()
def sinkhorn(cost: torch.Tensor, epsilon: float, iterations: int = 50) -> torch.Tensor:
    """Entropic transport plan that spreads the rows evenly over the columns (Cuturi 2013).

    Args:
        cost: `(rows, columns)`; brought to mean 0 and largest distance from it 1 first, so that epsilon has one scale.
        epsilon: weight of the entropy; smaller follows the cost more closely.
        iterations: rounds of column and row normalisation.

    Returns:
        `(rows, columns)` float64, each row sums to 1 and each column to about rows / columns.
    """
    cost = cost.double()
    cost = cost - cost.mean()
    log_plan = -cost / (cost.abs().max().clamp_min(1e-12) * epsilon)
    share = torch.log(torch.tensor(cost.shape[0] / cost.shape[1], dtype=torch.float64))
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True) + share
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
    return log_plan.exp()


def rotate_gradient(latent: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """The quantised vector, with gradients that are rotated and scaled back onto the latent.

    The rotation trick (Fifty et al. 2024, arXiv 2410.06424): the value is `quantized`; the path from it to `latent` is
    the rotation that takes one onto the other, held still, so that the angle between gradient and code vector is kept.
    Shapes: `(batch, dim)` each -> `(batch, dim)`.
    """
    with torch.no_grad():
        source, target = F.normalize(latent, dim=1), F.normalize(quantized, dim=1)
        mirror = F.normalize(source + target, dim=1)
        length = latent.norm(dim=1, keepdim=True)
        scale = quantized.norm(dim=1, keepdim=True) / length.clamp_min(1e-6)
    along = (latent * mirror).sum(1, keepdim=True) * mirror
    turned = (latent * source).sum(1, keepdim=True) * target
    # A latent of no length has no direction to turn from: its gradient goes straight through.
    return torch.where(
        length > 1e-6, scale * (latent - 2 * along + 2 * turned), latent + (quantized - latent).detach()
    )


class ResidualQuantizer(nn.Module):
    """Quantises a vector level by level: each level quantises what the levels before it left over."""

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__()
        self.config = config
        # Asked of this and never of `requires_grad`, which `from_pretrained` sets on every parameter.
        self.by_loss = config.codebook_update == "loss"
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.empty(size, config.codebook_dim), requires_grad=self.by_loss)
            for size in config.codebook_sizes
        )
        if not self.by_loss:
            for level, size in enumerate(config.codebook_sizes):
                # Running use of each code and running sum of what it quantised; 0 means that training has not begun.
                self.register_buffer(f"ema_count_{level}", torch.zeros(size))
                self.register_buffer(f"ema_sum_{level}", torch.zeros(size, config.codebook_dim))
        # By level, training steps since a code last quantised anything; no part of a checkpoint. Made when training
        # begins: `from_pretrained` builds the module on the meta device and fills parameters and buffers only.
        self._idle: dict[int, torch.Tensor] = {}

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Shape: `(batch, dim)` -> quantised `(batch, dim)`, codes `(batch, levels)`, loss (scalar).

        The gradient passes the quantiser as `estimator` says. Code books stay in fp32 under autocast.
        """
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            residual, total = latent, torch.zeros_like(latent)
            codes, loss = [], latent.new_zeros(())
            for level, codebook in enumerate(self.codebooks):
                chosen = self._choose(residual.detach(), codebook.detach())
                if self.training:
                    self._revive(level, residual.detach(), chosen)
                quantized = codebook[chosen]
                if self.by_loss:
                    loss = loss + F.mse_loss(quantized, residual.detach())
                elif self.training:
                    self._move(level, residual.detach(), chosen)
                loss = loss + self.config.commitment_weight * F.mse_loss(residual, quantized.detach())
                total = total + quantized
                residual = residual - quantized.detach()
                codes.append(chosen)
            if self.config.estimator == "rotation":
                passed = rotate_gradient(latent, total.detach())
            else:
                passed = latent + (total - latent).detach()
            return passed, torch.stack(codes, 1), loss

    @torch.no_grad()
    def codes(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape: `(batch, dim)` -> codes `(batch, levels)`, and what the last level quantised `(batch, dim)`."""
        residual, codes = latent, []
        for level, codebook in enumerate(self.codebooks):
            codes.append(nearest_codes(residual, codebook))
            if level + 1 < len(self.codebooks):
                residual = residual - codebook[codes[-1]]
        return torch.stack(codes, 1), residual

    @torch.no_grad()
    def initialize(self, latent: torch.Tensor, seed: int) -> None:
        """Puts each level's code vectors on the k-means centres of its residuals. Shape: `(rows, dim)`.

        Of more than `KMEANS_ROWS` rows a sample is taken: the centres hardly move and time does not grow.
        """
        from sklearn.cluster import KMeans

        residual = latent.float().cpu().numpy()
        if len(residual) > KMEANS_ROWS:
            residual = residual[np.random.default_rng(seed).choice(len(residual), KMEANS_ROWS, replace=False)]
        for level, codebook in enumerate(self.codebooks):
            size = min(len(codebook), len(np.unique(residual, axis=0)))
            kmeans = KMeans(size, n_init=1, max_iter=50, random_state=seed).fit(residual)
            centres = torch.from_numpy(kmeans.cluster_centers_).to(codebook)
            # Fewer distinct rows than codes: the rest stay where no row is nearest, or, as a balanced choice makes
            # use of every code, on the same centres again.
            again = centres[torch.arange(len(codebook) - size) % size]
            codebook.copy_(torch.cat([centres, again if self.config.sinkhorn_epsilon else again.fill_(FAR_AWAY)]))
            if not self.by_loss:
                getattr(self, f"ema_count_{level}").zero_()
            residual = residual - kmeans.cluster_centers_[kmeans.labels_]

    @torch.no_grad()
    def initialize_from_codes(self, latent: torch.Tensor, pinned: torch.Tensor, seed: int) -> None:
        """Puts each code vector on the mean of the residuals that carry the code; unused codes on residuals of others.

        Shapes: `(rows, dim)`, `(rows, levels)` with -1 where a row has no codes.
        """
        generator = torch.Generator().manual_seed(seed)
        known = (pinned >= 0).all(1)
        residual, fresh = latent[known].float(), latent[~known].float()
        for level, codebook in enumerate(self.codebooks):
            codes = pinned[known, level]
            counts = torch.bincount(codes, minlength=len(codebook)).to(residual)
            sums = torch.zeros(len(codebook), residual.shape[1], device=residual.device).index_add_(0, codes, residual)
            codebook.copy_(sums / counts.clamp_min(1)[:, None])
            unused = (counts == 0).nonzero()[:, 0]
            source = fresh if len(fresh) else residual
            rows = torch.randint(len(source), (len(unused),), generator=generator)
            codebook[unused] = source[rows.to(source.device)].to(codebook.dtype)
            if not self.by_loss:
                getattr(self, f"ema_count_{level}").zero_()
            residual = residual - codebook[codes]
            if len(fresh):
                fresh = fresh - codebook[nearest_codes(fresh, codebook.float())]

    def _choose(self, residual: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.config.sinkhorn_epsilon):
            return nearest_codes(residual, codebook)
        return sinkhorn(torch.cdist(residual, codebook).square(), self.config.sinkhorn_epsilon).argmax(1)

    @torch.no_grad()
    def _move(self, level: int, residual: torch.Tensor, chosen: torch.Tensor) -> None:
        """Code vectors as running means of what they quantised (van den Oord et al. 2017, appendix)."""
        codebook, decay = self.codebooks[level], self.config.ema_decay
        count, total = getattr(self, f"ema_count_{level}"), getattr(self, f"ema_sum_{level}")
        if not count.any():
            count.fill_(1.0)
            total.copy_(codebook)
        used = torch.zeros_like(count).index_add_(0, chosen, torch.ones_like(chosen, dtype=count.dtype))
        count.mul_(decay).add_(used, alpha=1 - decay)
        total.mul_(decay).add_(torch.zeros_like(total).index_add_(0, chosen, residual), alpha=1 - decay)
        # A code that nothing has chosen for long stays: its sum and its count both went to 0.
        codebook.copy_(torch.where(count[:, None] > 1e-5, total / count[:, None], codebook))

    @torch.no_grad()
    def _revive(self, level: int, residual: torch.Tensor, chosen: torch.Tensor) -> None:
        """Counts idle steps, and puts codes that idle too long on residuals of this batch."""
        if not self.config.revive_after:
            return
        if level not in self._idle:
            self._idle[level] = torch.zeros(len(self.codebooks[level]), dtype=torch.long, device=residual.device)
        idle = self._idle[level]
        idle += 1
        idle[chosen] = 0
        dead = (idle > self.config.revive_after).nonzero()[:, 0]
        if len(dead):
            rows = torch.randint(len(residual), (len(dead),), device=residual.device)
            self.codebooks[level][dead] = residual[rows].to(self.codebooks[level].dtype)
            if not self.by_loss:
                getattr(self, f"ema_count_{level}")[dead] = 1.0
                getattr(self, f"ema_sum_{level}")[dead] = residual[rows]
            idle[dead] = 0


def mlp(dims: list[int]) -> nn.Sequential:
    """Linear layers of the given widths with GELU between them."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(dims)):
        layers += ([nn.GELU()] if i else []) + [nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*layers)
