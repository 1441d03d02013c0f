"""Settings of the deep interest network."""

from collections.abc import Sequence

from transformers import PretrainedConfig

from align3gr.errors import InputError

ATTENTIONS = ("target", "recency", "mean")
ACTIVATIONS = ("dice", "prelu")


class DINConfig(PretrainedConfig):
    """Settings of a [`DINModel`].

    Args:
        num_items: size of the catalogue. The index `num_items` stands for padding.
        embedding_dim: width of an item's vector.
        attention_dims: hidden widths of the local activation unit; the paper's is one layer of 36.
        hidden_dims: hidden widths of the network above; the paper's are 200 and 80.
        attention: "target", the paper's local activation unit, which is also told each item's place in the history;
            "recency", one learnt weight for each place, whatever the target; "mean" averages the history.
        activation: "dice", the paper's, or "prelu".
        mini_batch_l2: weight of the mini-batch-aware regularisation; 0 leaves it out.
        max_history: items of a history that are read, the latest ones.
    """

    model_type = "align3gr_din"

    def __init__(
        self,
        num_items: int = 1,
        embedding_dim: int = 64,
        attention_dims: Sequence[int] = (36,),
        hidden_dims: Sequence[int] = (200, 80),
        attention: str = "target",
        activation: str = "dice",
        mini_batch_l2: float = 1e-3,
        max_history: int = 20,
        **kwargs,
    ) -> None:
        for name, value, choices in (("attention", attention, ATTENTIONS), ("activation", activation, ACTIVATIONS)):
            if value not in choices:
                raise InputError(f"{name}: got '{value}', choose from {', '.join(choices)}")
        if not attention_dims or min(num_items, embedding_dim, max_history, *attention_dims, *hidden_dims) < 1:
            raise InputError("num_items, embedding_dim, max_history and all widths must be 1 or more")
        self.num_items = num_items
        self.embedding_dim = embedding_dim
        self.attention_dims = list(attention_dims)
        self.hidden_dims = list(hidden_dims)
        self.attention = attention
        self.activation = activation
        self.mini_batch_l2 = mini_batch_l2
        self.max_history = max_history
        super().__init__(**kwargs)
