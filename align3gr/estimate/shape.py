"""Shapes of decoder language models and what follows from them alone: parameters, modules, the cache of a search."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from align3gr.errors import InputError

_QKV, _ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj", "down_proj")
# Where each family has biases and norms of its own that Llama has not.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "gemma": {},
    "qwen2": {"biased": _QKV},
    "qwen3": {"qk_norm": True},
}
MODULES = (*_QKV, *_ATTENTION, *_MLP)


@dataclass(frozen=True)
class ModelShape:
    """A decoder of blocks of attention and gated MLP, as Llama, Mistral, Gemma, Qwen2 and Qwen3 are.

    Args:
        hidden_size, num_layers, num_heads, intermediate_size, vocab_size: as in the model's config.json.
        num_kv_heads: heads of keys and values; `num_heads` where None.
        head_dim: width of a head; `hidden_size / num_heads` where None.
        tie_embeddings: whether input and output embeddings are one matrix.
        biased: modules of a block that have a bias.
        qk_norm: whether queries and keys are normalised by head, as in Qwen3.

    Raises:
        InputError: a number is below 1, or heads do not divide what they share.

    >>> PRESETS["llama2-7b"].parameters
    6738415616
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    tie_embeddings: bool = False
    biased: tuple[str, ...] = ()
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "kv_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise InputError(
                f"hidden_size: got {self.hidden_size}, no multiple of num_heads {self.num_heads}; give head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise InputError(f"num_kv_heads: got {self.kv_heads}, expected a divisor of num_heads {self.num_heads}")

    @classmethod
    def from_pretrained(cls, name_or_path: str) -> "ModelShape":
        """The shape of a model on the Hub or in a folder, by its config.json.

        Raises:
            InputError: there is none, or it is of a family that is not counted here.
        """
        from transformers import AutoConfig

        try:
            config: Any = AutoConfig.from_pretrained(name_or_path)
        except (OSError, ValueError) as error:  # nothing there; not the config of a model
            raise InputError(
                f"--model {name_or_path}: its config.json cannot be read: {' '.join(str(error).split())[:200]}; "
                f"give a folder, a Hub id, a preset ({', '.join(PRESETS)}) or the numbers of a shape"
            ) from error
        if config.model_type not in _FAMILIES:
            raise InputError(
                f"--model {name_or_path}: model_type: got {config.model_type}, expected one of "
                f"{', '.join(_FAMILIES)}; give the numbers of the shape it comes closest to"
            )
        family = dict(_FAMILIES[config.model_type])
        if getattr(config, "attention_bias", False):
            family["biased"] = (*_QKV, *_ATTENTION)
        if getattr(config, "mlp_bias", False):
            family["biased"] = (*family.get("biased", ()), *_MLP)
        return cls(
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.intermediate_size,
            config.vocab_size,
            config.num_key_value_heads,
            getattr(config, "head_dim", None),
            config.tie_word_embeddings,
            **family,
        )

    def grown(self, tokens: int) -> "ModelShape":
        """The same model with rows for so many more tokens."""
        return replace(self, vocab_size=self.vocab_size + tokens)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def query_width(self) -> int:
        """Numbers that all heads of a token have together."""
        return self.num_heads * self.head_size

    @property
    def key_width(self) -> int:
        """Numbers that the keys of a token have together; its values have as many."""
        return self.kv_heads * self.head_size

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear module of a block."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_width),
            "k_proj": (hidden, self.key_width),
            "v_proj": (hidden, self.key_width),
            "o_proj": (self.query_width, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def matrices(self) -> int:
        """Weights of the linear modules of all blocks, without biases."""
        return self.num_layers * sum(inputs * outputs for inputs, outputs in self.modules.values())

    @property
    def embedding(self) -> int:
        """Numbers of one embedding matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def embeddings(self) -> int:
        """Embedding matrices: one that is tied, or two."""
        return 1 if self.tie_embeddings else 2

    @property
    def parameters(self) -> int:
        """All parameters, those of tied matrices once."""
        biases = sum(self.modules[name][1] for name in self.biased)
        norms = 2 * self.hidden_size + (2 * self.head_size if self.qk_norm else 0)
        blocks = self.matrices + self.num_layers * (biases + norms)
        return blocks + self.hidden_size + self.embeddings * self.embedding


def cache_bytes(
    shape: ModelShape, users: int, prompt: int, codebook_sizes: Sequence[int], beams: int, itemsize: int
) -> tuple[int, int]:
    """The key-value cache of a constrained beam search at its largest, and that of `generate` beside it.

    Ours holds each prompt once, and behind it the tokens of all beams but those of the last level, which nothing
    follows. `generate` holds a copy of the prompt a beam: users x beams x (prompt + levels - 1).

    Args:
        shape: of the model.
        users: prompts in one search.
        prompt: tokens of each.
        codebook_sizes: codes at each level; where they are fewer than the beams, the first level has so many beams.
        beams: of the search.
        itemsize: bytes of a number.

    >>> cache_bytes(PRESETS["llama2-7b"], 1, 100, [256, 256, 256], 20, 2)[0] // (2 * 32 * 4096 * 2)
    140
    """
    a_token = 2 * shape.num_layers * shape.key_width * itemsize
    kept, prefixes = 0, 1
    for size in codebook_sizes[:-1]:
        prefixes = min(beams, prefixes * size)
        kept += prefixes
    return users * (prompt + kept) * a_token, users * beams * (prompt + len(codebook_sizes) - 1) * a_token


# As published: config.json of meta-llama/Llama-2-7b-hf and so on.
PRESETS = {
    "llama2-7b": ModelShape(4096, 32, 32, 11008, 32000),
    "llama2-13b": ModelShape(5120, 40, 40, 13824, 32000),
    "llama3-8b": ModelShape(4096, 32, 32, 14336, 128256, 8),
    "qwen3-0.6b": ModelShape(1024, 28, 16, 3072, 151936, 8, 128, True, qk_norm=True),
    "qwen3-1.7b": ModelShape(2048, 28, 16, 6144, 151936, 8, 128, True, qk_norm=True),
    "qwen3-4b": ModelShape(2560, 36, 32, 9728, 151936, 8, 128, True, qk_norm=True),
    "qwen3-8b": ModelShape(4096, 36, 32, 12288, 151936, 8, 128, qk_norm=True),
}
