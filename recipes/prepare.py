"""Raw logs -> validated tables, k-core, leave-one-out split. See `prepare.yaml` of any data set."""

from dataclasses import asdict, dataclass, field

from align3gr.data import (
    SyntheticMarket,
    SyntheticMarketConfig,
    leave_one_out,
    read_lcrec,
    read_movielens_100k,
    read_tables,
)
from align3gr.errors import InputError
from align3gr.pipeline import stage
from align3gr.recipe import expand, parse, run_recipe

READERS = {"lcrec": read_lcrec, "movielens-100k": read_movielens_100k, "tables": read_tables}


@dataclass
class PrepareArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; the split appears in its folder data."})
    format: str = field(
        metadata={"help": "Layout of the source.", "choices": [*READERS, "synthetic"]},
    )
    source: str | None = field(default=None, metadata={"help": "Folder of the raw data; none for 'synthetic'."})
    core: int = field(default=5, metadata={"help": "Users and items with fewer interactions are left out."})


def main() -> None:
    arguments, market = parse([PrepareArguments, SyntheticMarketConfig])
    settings = asdict(arguments)
    inputs = []
    if arguments.format == "synthetic":
        if arguments.source:
            raise InputError("source: the synthetic market has none; leave it out")
        settings["market"] = asdict(market)
    else:
        if not arguments.source:
            raise InputError(f"source: format '{arguments.format}' needs the folder of the raw data")
        if market != SyntheticMarketConfig():
            raise InputError(f"options of the synthetic market do not apply to format '{arguments.format}'")
        source = expand(arguments.source)
        if not source.is_dir():
            raise InputError(f"source: {source} is no folder; correct it, or set ALIGN3GR_DATA where it names that")
        inputs.append(source)
    del settings["run_dir"]
    with stage(arguments.run_dir, "prepare", settings, inputs, market.seed) as work:
        if work is None:
            return
        if arguments.format == "synthetic":
            tables = SyntheticMarket(market).tables()
            SyntheticMarket(market).save_config(work.folder)
        else:
            tables = READERS[arguments.format](source)
        leave_one_out(tables, arguments.core).save(work.folder)


if __name__ == "__main__":
    run_recipe(main)
