"""What stands beside `table.md` for machines: CSV of the rows and of the cells, and the exact settings."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align3gr.ablation.cells import ROW_OPTIONS, AblationArguments, Cell
from align3gr.ablation.codes import SCID, read_options
from align3gr.pipeline import MANIFEST, public_settings, read_manifest, stage_folder

_CODES = ("sizes", "used", "perplexity", "shared_before", "shared_after", "lift", "auc", "user_codes", "seconds")
# Stages whose artefacts all rows share.
_RUN_STAGES = ("prepare", "embed", SCID)


def rows_csv(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """A line for each row: mean and standard deviation over seeds, and the difference to the row it is compared with.

    Args:
        rows: of `write_table`.
        metrics: headings of the table, in their order.
    """
    lines = []
    for row in rows:
        difference = row.get("difference", {})
        line: dict[str, Any] = {"row": row["name"], "seeds": _words(row["seeds"])}
        for metric in metrics:
            line |= {metric: row["mean"].get(metric), f"{metric} std": row["std"].get(metric)}
        line |= {"against": difference.get("against"), "difference recall@10": difference.get("recall@10")}
        line |= {"p over seeds": difference.get("p_seeds"), "p over users": _words(difference.get("p_users", []))}
        line |= {"minutes": row.get("minutes")} | _codes_columns(row["codes"])
        lines.append(line)
    return _csv(lines)


def cells_csv(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, tuple[str, str]]) -> str:
    """A line for each finished cell.

    Args:
        rows: of `write_table`.
        metrics: heading -> column of the evaluation and metric.
    """
    lines = []
    for row in rows:
        for seed, (_, result) in sorted(row["cells"].items()):
            line: dict[str, Any] = {"row": row["name"], "seed": seed}
            found = result["metrics"]
            line |= {name: found.get(column, {}).get(metric) for name, (column, metric) in metrics.items()}
            line |= {name: result[name] for name in ("train_seconds", "judge_seconds")}
            lines.append(line | _codes_columns(result.get("codes")) | {"key": result["key"]})
    return _csv(lines)


def settings_json(arguments: AblationArguments, cells: Sequence[Cell]) -> str:
    """All that makes a table: the run's stages, and for each row its options with those of the files they stand in.

    `recorded` are the settings that the finished training itself wrote down, with the defaults of its own options and
    the versions that it ran with; null where no cell is finished or it is older than this record.
    """
    run_dir, rows = Path(arguments.run_dir), {}
    for name, own in arguments.rows.items():
        stage, cell = arguments.stage(name), next(cell for cell in cells if cell.row == name)
        result = next((found for cell in cells if cell.row == name and (found := cell.result) is not None), {})
        options = {option: value for option, value in own.items() if option not in ROW_OPTIONS}
        rows[name] = {
            "stage": stage,
            "after": own.get("after"),
            "against": arguments.against(name),
            "control": own.get("control"),
            "file": arguments.base_of(stage),
            "options": _merged(arguments.base_of(stage), options),
            "codes": None
            if cell.codes is None
            else {"file": cell.codes.config, "options": _merged(cell.codes.config, cell.codes.options)},
            "recorded": None
            if "settings" not in result
            else {
                "settings": result["settings"],
                "versions": result["versions"],
                "codes": result["codes"]["settings"],
            },
        }
    table = {name: getattr(arguments, name) for name in ("run_dir", "name", "seeds", "split", "num_beams", "users")}
    table |= {"history_cache": arguments.history_cache} if arguments.history_cache else {}
    run = {
        stage: read_manifest(folder)["settings"]
        for stage in _RUN_STAGES
        if ((folder := stage_folder(run_dir, stage)) / MANIFEST).is_file()
    }
    return json.dumps(public_settings({"table": table, "run": run, "rows": rows}), indent=2) + "\n"


def _merged(file: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options over those of a file; where a cell stands follows from the table."""
    return {name: value for name, value in (read_options(file) | dict(options)).items() if name != "run_dir"}


def _codes_columns(codes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        f"codes {name}": _words(value) if isinstance(value := (codes or {}).get(name), list) else value
        for name in _CODES
    }


def _words(values: Sequence[Any]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()
