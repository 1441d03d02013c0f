"""Deep interest network: what of a history matters depends on the item it is asked about (Zhou et al. 2018).

Histories are ragged. All layers before the pooling work on the real (history item, target) pairs only, laid end to
end, so that padding costs nothing and cannot reach the batch statistics of Dice.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from align3gr.encoders.configuration_din import DINConfig


@dataclass
class DINOutput(ModelOutput):
    """
    Args:
        loss: mean log loss of the labels plus the regularisation, a scalar; None without labels.
        logits: `(batch, targets)`, log-odds that the user takes the target next.
        interests: `(batch, targets, embedding_dim)`, the history as pooled for each target.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    interests: torch.Tensor | None = None


class Dice(nn.Module):
    """Data-adaptive activation: `p(s) s + (1 - p(s)) alpha s`, p the sigmoid of s normalised over the batch.

    Eq. (3) of DIN. Mean and variance are the batch's in training and running ones otherwise.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, dim: int, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.alpha = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        """Shape: `(rows, dim)` -> the same."""
        normalized = F.batch_norm(
            s,
            self.running_mean,
            self.running_var,
            # One row has no variance; the running statistics then serve.
            training=self.training and len(s) > 1,
            momentum=self.momentum,
            eps=self.eps,
        )
        p = torch.sigmoid(normalized)
        return s * (p + (1 - p) * self.alpha)


def activation(config: DINConfig, dim: int) -> nn.Module:
    return Dice(dim) if config.activation == "dice" else nn.PReLU(dim)


def tower(config: DINConfig, dims: list[int], last: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    """Activation and linear layer in turn, from the first width to a single number."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(dims):
        layers += [activation(config, fan_in), nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*layers, activation(config, dims[-1]), last(dims[-1], 1))


class AttentionWeight(nn.Linear):
    """Last layer of the attention. It starts with weight 1 for all, so that training starts from mean pooling."""


class PositionEmbedding(nn.Embedding):
    """What is learnt for each place in the history, counted from the latest item. It starts at zero."""


class LocalActivationUnit(nn.Module):
    """Weight of a history item for a target, from both vectors, their difference, their product, and its place.

    The weights are not normalised by a softmax: their sum tells how strong the interest is (section 4.3 of DIN). The
    paper's unit does not know which items are recent.
    """

    def __init__(self, config: DINConfig) -> None:
        super().__init__()
        self.input = nn.Linear(4 * config.embedding_dim, config.attention_dims[0])
        self.position = PositionEmbedding(config.max_history, config.attention_dims[0])
        self.tower = tower(config, config.attention_dims, AttentionWeight)

    def forward(
        self, history: torch.Tensor, target: torch.Tensor, row: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        """Weights `(pairs, targets)`.

        Args:
            history: `(pairs, dim)` the history items of all rows, end to end.
            target: `(batch, targets, dim)`.
            row: `(pairs,)` int64, the row of the batch that each history item belongs to.
            place: `(pairs,)` int64, 0 for the latest item of a history.
        """
        # W [h, t, h - t, h * t] = (W1 + W3) h + (W2 - W3) t + W4 (h * t): the first two are computed once an item,
        # not once a pair, and the four-fold wide input is never built.
        of_history, of_target, of_difference, of_product = self.input.weight.chunk(4, dim=1)
        hidden = F.linear(history[:, None] * target[row], of_product)
        hidden = hidden + (F.linear(history, of_history + of_difference) + self.position(place))[:, None]
        hidden = hidden + F.linear(target, of_target - of_difference, self.input.bias)[row]
        return self.tower(hidden.flatten(0, 1)).view(hidden.shape[:2])


class DINModel(PreTrainedModel):
    """Deep interest network over item ids.

    The log-odds are those of Figure 2 of the paper with the item as the only feature: an MLP over the pooled history,
    the target and their product, plus a bias of the item.

    Args:
        config: its sizes.

    ```python
    >>> import torch
    >>> from align3gr.encoders.configuration_din import DINConfig
    >>> from align3gr.encoders.modeling_din import DINModel
    >>> model = DINModel(DINConfig(num_items=5, embedding_dim=4)).eval()
    >>> model(torch.tensor([[0, 1, 5]]), torch.tensor([[2, 3]])).logits.shape  # 5 is padding
    torch.Size([1, 2])

    ```
    """

    config_class = DINConfig
    base_model_prefix = "din"
    main_input_name = "history"
    interactions: torch.Tensor

    def __init__(self, config: DINConfig) -> None:
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items + 1, config.embedding_dim, padding_idx=config.num_items)
        self.item_bias = nn.Embedding(config.num_items + 1, 1, padding_idx=config.num_items)
        if config.attention == "target":
            self.activation_unit = LocalActivationUnit(config)
        elif config.attention == "recency":
            self.recency = PositionEmbedding(config.max_history, 1)
        widths = [3 * config.embedding_dim, *config.hidden_dims]
        self.input = nn.Linear(widths[0], widths[1]) if config.hidden_dims else nn.Identity()
        self.tower = tower(config, widths[1:] or widths)
        # How often an item stands in the training data; an item that never does has no vector.
        self.register_buffer("interactions", torch.zeros(config.num_items + 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AttentionWeight):
            init.zeros_(module.weight)
            init.ones_(module.bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            at_zero = module.embedding_dim == 1 or isinstance(module, PositionEmbedding)
            init.zeros_(module.weight) if at_zero else init.normal_(module.weight, std=0.05)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        elif isinstance(module, Dice):
            init.zeros_(module.alpha)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)

    def forward(self, history: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor | None = None) -> DINOutput:
        """Log-odds of targets after histories.

        Args:
            history: `(batch, length)` int64 item indices; `num_items` is padding, wherever it stands.
            targets: `(batch, targets)` int64 item indices.
            labels: `(batch, targets)` 1 for an item that was taken, 0 for one that was not.
        """
        interests = self.interests(history, targets)
        target = self.item_embeddings(targets)
        features = torch.cat([interests, target, interests * target], dim=-1).flatten(0, 1)
        logits = self.tower(self.input(features)).view(targets.shape) + self.item_bias(targets)[..., 0]
        loss = None
        if labels is not None:
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
            if self.config.mini_batch_l2:
                loss = loss + self.config.mini_batch_l2 * self._regularization(history, targets)
        return DINOutput(loss=loss, logits=logits, interests=interests)

    def interests(self, history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The history pooled for each target, zero for an empty one: the weighted items, divided by their number.

        The paper divides by nothing. Divided, long and short histories look alike to the layers above, and mean
        pooling is the special case of weights of 1.

        Shapes: `(batch, length)`, `(batch, targets)` int64 -> `(batch, targets, embedding_dim)`.

        Args:
            history: item indices of each user, padded.
            targets: item indices to judge.
        """
        real = history != self.config.num_items
        row, column = real.nonzero(as_tuple=True)
        # Counted over the real items, wherever padding stands; what is older than was ever read counts as the oldest.
        later = real.flip(1).cumsum(1).flip(1)[row, column] - 1
        place = later.clamp(max=self.config.max_history - 1)
        items = self.item_embeddings(history[row, column])
        length = torch.bincount(row, minlength=len(history))[row].to(items.dtype)
        weights = (1 / length)[:, None].expand(-1, targets.shape[1])
        if self.config.attention == "target":
            weights = weights * self.activation_unit(items, self.item_embeddings(targets), row, place)
        elif self.config.attention == "recency":
            weights = weights * (1 + self.recency(place))
        pooled = items.new_zeros(*targets.shape, items.shape[1])
        return pooled.index_add(0, row, weights[..., None] * items[:, None])

    def _regularization(self, history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Squared norms of the batch's items, each divided by its frequency: Eq. (6) of DIN."""
        items = torch.cat([history.flatten(), targets.flatten()]).unique()
        items = items[items != self.config.num_items]
        return (self.item_embeddings(items).square().sum(1) / self.interactions[items].clamp(min=1)).sum()


AutoConfig.register(DINConfig.model_type, DINConfig, exist_ok=True)
AutoModel.register(DINConfig, DINModel, exist_ok=True)
