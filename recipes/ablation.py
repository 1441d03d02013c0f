"""A table of trainings that differ in stated options: Tables 4 and 5 of the paper, a sweep of learning rates."""

from pathlib import Path

from align3gr.ablation import AblationArguments, run_table
from align3gr.recipe import parse, run_recipe


def main() -> None:
    (arguments,) = parse([AblationArguments])
    run_table(arguments)
    print((Path(arguments.run_dir) / arguments.name / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_recipe(main)
