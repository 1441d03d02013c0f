"""A table of trainings that differ in stated options: Tables 3 to 5 and Figure 4 of the paper, sweeps."""

from pathlib import Path

from align3gr.ablation import AblationArguments, run_table
from align3gr.recipe import parse, run_recipe


def main() -> None:
    (arguments,) = parse([AblationArguments])
    run_table(arguments)
    folder = Path(arguments.run_dir) / arguments.name
    print((folder / "table.md").read_text(encoding="utf-8"))
    if arguments.figure is not None:
        print(f"{folder}/figure.svg, {folder}/figure.png")


if __name__ == "__main__":
    run_recipe(main)
