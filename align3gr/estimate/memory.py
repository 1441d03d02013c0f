"""Memory of a training step on one device: weights, gradients, states of the optimizer, activations."""

from dataclasses import dataclass

from align3gr.errors import InputError
from align3gr.estimate.setting import OPTIMIZERS, Setting, count
from align3gr.estimate.shape import ModelShape

# The tiles in which TRL 1.16 computes logits: tokens, and tokens of the vocabulary.
_TILE = (4096, 32768)
# Weights that ZeRO-3 updates at once: `sub_group_size` of DeepSpeed 0.19, which accelerate leaves as it is.
_SUB_GROUP = 1_000_000_000


@dataclass(frozen=True)
class Activations:
    """Bytes that a step holds beside its states, for one device.

    Args:
        blocks: what the blocks keep for the backward pass; with checkpointing their inputs.
        recomputed: of the one block whose activations are computed again, with two gradients of its MLP's width.
        head: last norm, input of the head, log-probabilities, the head with the new rows put into it.
        copies: weights in bf16 that autocast made.
        workspace: logits and gradients of the loss, which nothing keeps.
    """

    blocks: int
    recomputed: int
    head: int
    copies: int
    workspace: int

    @property
    def saved(self) -> int:
        """What the forward pass leaves for the backward pass."""
        return self.blocks + self.head + self.copies

    @property
    def peak(self) -> int:
        """The loss comes first, then the last block is computed again."""
        return self.saved + max(self.recomputed, self.workspace)


def activations(shape: ModelShape, setting: Setting) -> Activations:
    """What a step keeps, tensor by tensor, as transformers' code keeps it with SDPA attention.

    The list of tensors is that of Korthikanti et al. 2022 (section 4.1), for blocks with RMSNorm, rotary positions and
    a gated MLP in place of theirs; attention keeps no scores (their section on selective recomputation, here the
    kernel's). Dropout in front of an adapter keeps a byte a number, as on a GPU; on a CPU it keeps the noise.

    Args:
        shape: of the model.
        setting: of the training.
    """
    block = setting.tokens * _block_bytes(shape, setting)
    copies, head_copy = _copies(shape, setting)
    blocks, recomputed = shape.num_layers * block, 0
    if setting.checkpointing:
        blocks = setting.tokens * shape.num_layers * shape.hidden_size * setting.stream_itemsize
        gradients = 2 * setting.tokens * shape.intermediate_size * setting.itemsize
        recomputed, copies = block + copies // shape.num_layers + gradients, 0
    head, workspace = _head_bytes(shape, setting)
    return Activations(blocks, recomputed, head, copies + head_copy, workspace)


def _norm_bytes(setting: Setting, width: int, groups: int = 1, itemsize: int = 4) -> int:
    """RMSNorm keeps its input and a factor for each group in fp32, and, where it trains, the normalised numbers."""
    return 4 * width + 4 * groups + (itemsize * width if setting.lora is None else 0)


def _block_bytes(shape: ModelShape, setting: Setting) -> int:
    """Bytes that one block keeps for one token."""
    size, hidden, inner = setting.itemsize, shape.hidden_size, shape.intermediate_size
    norms = 2 * _norm_bytes(setting, hidden, itemsize=setting.stream_itemsize)
    if shape.qk_norm:
        width, groups = shape.query_width + shape.key_width, shape.num_heads + shape.kv_heads
        norms += _norm_bytes(setting, width, groups, size)
    # With a mask transformers repeats keys and values for all heads, and the kernel keeps the mask in numbers.
    keys = shape.query_width if setting.padded else shape.key_width
    attention = size * (2 * shape.query_width + 2 * keys) + 4 * shape.num_heads
    attention += size * setting.length if setting.padded else 0
    return norms + attention + 3 * size * inner + _input_bytes(shape, setting)


def _input_bytes(shape: ModelShape, setting: Setting) -> int:
    """What linear modules and adapters keep of their inputs; that of o_proj is kept by attention already."""
    size, hidden, inner, lora = setting.itemsize, shape.hidden_size, shape.intermediate_size, setting.lora
    if lora is None:
        # Autocast makes q, k and v (gate and up) a bf16 copy each of the one fp32 input.
        readers = 3 + 2 if setting.autocast else 2
        return size * (readers * hidden + inner)
    inputs = {name: shape.modules[name][0] for name in lora.modules}
    low_rank = size * lora.rank * len(inputs)
    if lora.dropout:
        return low_rank + (size + 1) * sum(inputs.values())
    if setting.autocast:
        return low_rank + size * sum(inputs.values())
    shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    distinct = {shared.get(name, name): width for name, width in inputs.items() if name != "o_proj"}
    return low_rank + size * sum(distinct.values())


def _copies(shape: ModelShape, setting: Setting) -> tuple[int, int]:
    """bf16 copies of fp32 weights under autocast: those of the blocks, and that of the head."""
    if not setting.autocast:
        return 0, 0
    if setting.lora is None:
        # TRL's tiles take the head's weights as they are.
        return 2 * shape.matrices, 2 * shape.embedding if setting.loss == "full" else 0
    counted = count(shape, setting)
    return 2 * counted.adapter, 2 * counted.rows


def _head_bytes(shape: ModelShape, setting: Setting) -> tuple[int, int]:
    """What is kept from the last norm to the loss, and what the loss needs for a moment."""
    size, hidden, tokens = setting.itemsize, shape.hidden_size, setting.tokens
    kept = tokens * _norm_bytes(setting, hidden, itemsize=setting.stream_itemsize)
    counted = count(shape, setting)
    trains = counted.all_weights + counted.rows + counted.matrices > 0
    merged = size * shape.embedding if counted.rows else 0
    if setting.loss == "tiled":
        kept += tokens * hidden * setting.stream_itemsize
        tile = min(tokens, _TILE[0]) * min(shape.vocab_size, _TILE[1]) * size
        return kept + merged, tile + 4 * tokens * hidden + (4 * shape.embedding if trains else 0)
    kept += tokens * (size * hidden if trains else 0) + 4 * tokens * shape.vocab_size
    # The logits, and the gradients of log-probabilities and logits in fp32.
    return kept + merged, tokens * shape.vocab_size * (size + 8)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Args:
        weights, gradients, optimizer: what is there all the time.
        communication: gradients a second time, in DDP's buckets.
        activations: of a batch.
        step: what the optimizer makes for its step, when activations are gone: DeepSpeed's gradients in fp32.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int
    activations: Activations
    step: int

    @property
    def states(self) -> int:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer + self.communication

    @property
    def total(self) -> int:
        """The larger of two moments: from a step's second batch on gradients are there when activations are at their
        peak; then the optimizer takes its step.

        With one batch a step gradients come as activations go, and the first of the two is smaller.
        """
        return self.states + max(self.activations.peak, self.step)


def memory(shape: ModelShape, setting: Setting) -> Memory:
    """Memory of one of `processes` devices.

    ZeRO (Rajbhandari et al. 2020, section 5): stage 1 divides the optimizer's states by the number of processes, stage
    2 the gradients too, stage 3 the weights too; mixed precision is 2 + 2 bytes a weight, and 4 + 8 of fp32 copy and
    Adam. DeepSpeed makes the copy in fp32 as well, and of a process' gradients one for the step. DDP holds gradients
    twice, in its buckets too. Not counted: DeepSpeed's buckets, the layer that ZeRO-3 gathers, step counters, the
    allocator's waste, the libraries (about 1 GB on a GPU).

    Args:
        shape: of the model.
        setting: of the training.
    """
    counted = count(shape, setting)
    light = 2 if setting.precision == "bf16" else 4
    # What an adapter trains is fp32 without DeepSpeed; whole matrices are as the base is.
    own = light if setting.zero_stage else 4
    trained = own * (counted.all_weights + counted.adapter + counted.rows) + light * counted.matrices
    states = OPTIMIZERS[setting.optimizer] * (4 * counted.trainable if setting.zero_stage else trained)
    master = 4 * counted.trainable if setting.zero_stage else 0
    stage, n = setting.zero_stage, setting.processes
    return Memory(
        weights=_divided(light * counted.frozen + trained, n if stage == 3 else 1),
        gradients=_divided(trained, n if stage >= 2 else 1),
        optimizer=_divided(states + master, n if stage >= 1 else 1),
        communication=trained if stage == 0 and n > 1 else 0,
        activations=activations(shape, setting),
        step=4 * min(_divided(counted.trainable, n), _SUB_GROUP if stage == 3 else counted.trainable) if stage else 0,
    )


def _divided(size: int, parts: int) -> int:
    return -(-size // parts)


def adapter_bytes(shape: ModelShape, setting: Setting) -> int:
    """Size of the saved adapter; a tied matrix that trains whole is written twice (PEFT 0.21).

    Args:
        shape: of the model.
        setting: of the training.

    Raises:
        InputError: there is no adapter.
    """
    if setting.lora is None:
        raise InputError("adapter_bytes: all weights train, so that there is no adapter; give lora")
    counted = count(shape, setting)
    light = 2 if setting.precision == "bf16" else 4
    own = light if setting.zero_stage else 4
    copies = 2 // shape.embeddings
    return own * (counted.adapter + counted.rows) + light * copies * counted.matrices
