"""Encoding of plain text: a base tokenizer against the same one with 2,048 SCID tokens.

    python benchmarks/encoding_speed.py [--data runs/yelp/data]

Both encode the same texts, interleaved in one process on one thread, each round in the other order; times are CPU
times of the process, so that other work on the machine counts little. The ratio is the base's time over the extended
one's, the median of the rounds: 1 is no loss. Texts are those of the catalogue, alone and 200 in one.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align3gr.data import Split, SyntheticMarket, SyntheticMarketConfig
from align3gr.data.schema import TEXT
from align3gr.scid import SCIDTokenizer, train_base_tokenizer

SIZES = [256] * 4  # for items and for users: 2,048 tokens
VOCABULARY = 8000


def encoding_speed(
    base: PreTrainedTokenizerBase, extended: PreTrainedTokenizerBase, texts: Sequence[str], rounds: int
):
    """Median ratio of the times, and the base's best time in seconds."""
    ratios, best = [], float("inf")
    for turn in range(rounds):
        seconds = {}
        for name, tokenizer in (("base", base), ("extended", extended))[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            tokenizer(list(texts))
            seconds[name] = time.process_time() - start
        ratios.append(seconds["base"] / seconds["extended"])
        best = min(best, seconds["base"])
    return statistics.median(ratios), best


def metaspace_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A SentencePiece-style BPE as Llama 2 has."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    # Llama 2 merges across whole texts, blanks included.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of prepared data (default: the built-in market)")
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    if arguments.data:
        texts = Split.load(arguments.data).items[TEXT].to_list()
    else:
        texts = SyntheticMarket(SyntheticMarketConfig(num_items=4000)).tables().items[TEXT].to_list()
    measured = texts[:2000]
    for kind, make in (("byte-level", train_base_tokenizer), ("Metaspace", metaspace_tokenizer)):
        base = make(texts, VOCABULARY)
        extended = SCIDTokenizer.from_base(base, SIZES, SIZES)
        joined = [" ".join(measured[i : i + 200]) for i in range(0, len(measured), 200)]
        for length, rows in (("short", measured), ("long", joined)):
            ratio, seconds = encoding_speed(base, extended, rows, arguments.rounds)
            characters = sum(map(len, rows))
            row = {
                "tokenizer": kind,
                "texts": length,
                "mean_characters": characters // len(rows),
                "base_megabytes_per_second": round(characters / seconds / 1e6, 2),
                "ratio": round(ratio, 3),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
