"""Raw logs -> validated tables, k-core, split. See `prepare.yaml` of any data set and docs/data.md."""

from dataclasses import asdict, dataclass, field
from functools import partial

from align3gr.data import (
    FORMATS,
    FROM_HUB,
    LogSource,
    SyntheticMarket,
    SyntheticMarketConfig,
    find_files,
    leave_one_out,
    read_log,
    time_split,
)
from align3gr.errors import InputError
from align3gr.pipeline import stage
from align3gr.recipe import expand, parse, run_recipe


@dataclass
class PrepareArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; the split appears in its folder data."})
    format: str = field(metadata={"help": "Layout of the source.", "choices": [*FORMATS, "synthetic"]})
    source: str | None = field(
        default=None,
        metadata={"help": f"Folder (or file, or Hub data set for {' and '.join(FROM_HUB)}); none for 'synthetic'."},
    )
    core: int = field(default=5, metadata={"help": "Users and items with fewer interactions are left out."})
    duplicates: str = field(
        default="keep",
        metadata={"help": "What becomes of repeated (user, item) pairs.", "choices": ["keep", "first", "last"]},
    )
    since: str | None = field(
        default=None, metadata={"help": "Interactions before this moment are left out (date, timestamp or share)."}
    )
    until: str | None = field(default=None, metadata={"help": "Interactions from this moment on are left out."})
    split: str = field(
        default="leave_one_out", metadata={"help": "What is held out.", "choices": ["leave_one_out", "time"]}
    )
    validation_from: str | None = field(
        default=None, metadata={"help": "Split by time: where train ends (date, timestamp, or share of the log)."}
    )
    test_from: str | None = field(default=None, metadata={"help": "Split by time: where validation ends."})

    def __post_init__(self) -> None:
        for name in ("validation_from", "test_from"):
            if (getattr(self, name) is None) == (self.split == "time"):
                raise InputError(f"{name}: {'needed by' if self.split == 'time' else 'applies only to'} split 'time'")


def main() -> None:
    arguments, options, market = parse([PrepareArguments, LogSource, SyntheticMarketConfig])
    settings = asdict(arguments)
    del settings["run_dir"]
    files = None
    if arguments.format == "synthetic":
        if arguments.source or options != LogSource():
            raise InputError("source: the synthetic market has none; leave it and the options of files out")
        settings["market"] = asdict(market)
    else:
        if not arguments.source:
            raise InputError(f"source: format '{arguments.format}' needs the folder of the raw data")
        if market != SyntheticMarketConfig():
            raise InputError(f"options of the synthetic market do not apply to format '{arguments.format}'")
        source = expand(arguments.source)
        if not source.exists() and arguments.format not in FROM_HUB:
            raise InputError(f"source: {source} does not exist; correct it, or set ALIGN3GR_DATA where it names that")
        files = find_files(arguments.format, source, options)
        settings["files"] = asdict(options)
    with stage(arguments.run_dir, "prepare", settings, files.inputs if files else [], market.seed) as work:
        if work is None:
            return
        if files is None:
            SyntheticMarket(market).save_config(work.folder)
        # The tables have no name here: a large log is freed by the split as soon as it can be.
        rules = {name: getattr(arguments, name) for name in ("duplicates", "since", "until")}
        split = partial(leave_one_out, min_interactions=arguments.core, **rules)
        if arguments.split == "time":
            moments = {name: getattr(arguments, name) for name in ("validation_from", "test_from")}
            split = partial(time_split, min_interactions=arguments.core, **moments, **rules)
        split(SyntheticMarket(market).tables() if files is None else read_log(arguments.format, files, options)).save(
            work.folder
        )


if __name__ == "__main__":
    run_recipe(main)
