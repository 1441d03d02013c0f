"""Random numbers of a training in several processes: what must agree does, and dropout differs."""

import torch
from transformers import TrainerCallback


class SeedOfEachProcess(TrainerCallback):
    """Gives each process of a launch dropout masks of its own.

    A Trainer seeds all processes alike (transformers 5.23), as it must: they start from the same weights, and each
    takes its part of the same order of rows. With nothing else, row `i` of every process would also be trained under
    the same mask, and a launch would average over fewer masks than one process does with as many rows. Orders are
    drawn from generators that are made before a training begins, so that a new seed changes masks alone.

    The first process keeps its numbers: alone, it does what it does without this. A training that is taken up goes on
    with the state of each process, which a Trainer restores from the checkpoint after this.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if args.process_index:
            torch.manual_seed(args.seed + args.process_index)
