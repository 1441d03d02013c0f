"""A served model's log of events -> feedback in three levels, for the next round of RF-DPO. See docs/feedback.md."""

import json
from dataclasses import dataclass, field

from align3gr.data import Split, feedback_of_log, read_events
from align3gr.errors import InputError
from align3gr.pipeline import stage, stage_folder
from align3gr.recipe import expand, parse, run_recipe


@dataclass
class FeedbackArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; the table appears in its folder feedback."})
    log: str = field(metadata={"help": "Parquet file or folder: user_id, item_id, timestamp, event, ..."})


def main() -> None:
    (arguments,) = parse([FeedbackArguments])
    data, log = stage_folder(arguments.run_dir, "prepare"), expand(arguments.log)
    if not log.exists():
        raise InputError(f"--log {arguments.log}: not found; give a Parquet file, or a folder of them")
    # The targets are read to leave these very events out.
    inputs = [log, *(data / f"{name}.parquet" for name in ("items", "users", "train", "validation", "test"))]
    with stage(arguments.run_dir, "feedback", {}, inputs) as work:
        if work is None:
            return
        table, counts = feedback_of_log(read_events(log), Split.load(data))
        table.write_parquet(work.folder / "feedback.parquet")
        (work.folder / "statistics.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
        for name, count in counts.items():
            print(f"{name.replace('_', ' '):>14} {count:12,}")
        print(f"use it: --feedback_table {stage_folder(arguments.run_dir, 'feedback') / 'feedback.parquet'}")


if __name__ == "__main__":
    run_recipe(main)
