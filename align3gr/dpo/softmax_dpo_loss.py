"""Softmax-DPO loss, Eq. (3) of Align3GR (Softmax-DPO, Chen et al. 2024)."""

import torch
from torch import Tensor


def softmax_dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, rejected_mask: Tensor, beta: float
) -> Tensor:
    """Loss of each row: `softplus(logsumexp_j(beta * (delta_j - delta_w)))`.

    This is `-log softmax` of the chosen reward among chosen and rejected: `log(1 + N)` for a policy that equals its
    reference, DPO's sigmoid loss for `N = 1`, and finite for any finite input.

    Args:
        chosen_logratios: Policy minus reference log-probability of the chosen completion, (batch,).
        rejected_logratios: The same of the rejected completions, (batch, rejected).
        rejected_mask: True where there is a rejected completion, (batch, rejected), at least one a row.
        beta: Weight of the distance from the reference.

    Returns:
        Tensor (batch,).

    >>> chosen, rejected = torch.tensor([0.0]), torch.tensor([[0.0, 0.0, 7.0]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> round(softmax_dpo_loss(chosen, rejected, mask, beta=0.1).item(), 4)  # log(1 + 2)
    1.0986
    """
    margins = beta * (rejected_logratios - chosen_logratios[:, None])
    # `softplus(logsumexp(m))` is `logsumexp([0, m])`: one stable operation, with no -inf of its own.
    margins = torch.cat([torch.zeros_like(margins[:, :1]), margins.masked_fill(~rejected_mask, -torch.inf)], dim=1)
    return torch.logsumexp(margins, dim=1)
