"""Code blocks of the documentation, and how they are run: as a reader would, from the top of a page to its end."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from align3gr import cli
from tests.conftest import ROOT
from tests.launching import run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "sh", "bash")
SHOWN = ("yaml", "json", "text", "")  # settings, answers and trees of files: nothing to run
MARKER = re.compile(r"<!-- not run: (.+) -->")
# What needs a shell of its own: here-documents, pipes, what goes on in the background.
SHELL_SYNTAX = re.compile(r"<<|[|<>]|&(\s|$)|&&|\$!")


@dataclass(frozen=True)
class Block:
    """One code block: the line of its fence, its language, its text, and why it is not run, if it is not."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order; a marker stands in the last line before the fence.

    Raises:
        ValueError: A fence is not closed, or a marker stands before something else.
    """
    blocks: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: int | None = None
    for number, line in enumerate(lines, 1):
        if opened is not None and line.strip() == "```":
            before = lines[opened - 2] if opened > 1 else ""
            marker = MARKER.fullmatch(before.strip())
            code = "\n".join(lines[opened : number - 1]) + "\n"
            language = lines[opened - 1].strip().removeprefix("```")
            blocks.append(Block(page, opened, language, code, marker and marker[1]))
            opened = None
        elif opened is None and line.lstrip().startswith("```"):
            opened = number
    markers = sum("<!-- not run" in line for line in lines)
    if opened is not None or markers != sum(block.not_run is not None for block in blocks):
        raise ValueError(f"{page.name}: a fence that is not closed, or a marker that is not the line above a fence")
    return blocks


def shell_commands(code: str) -> list[list[str]]:
    """The commands of a block without shell syntax, in words; variables are filled in, comments are left out."""
    joined = code.replace("\\\n", " ").splitlines()
    words = (shlex.split(os.path.expandvars(line), comments=True) for line in joined)
    return [command for command in words if command]


class PageRunner:
    """Runs the blocks of one page in the working folder, Python in one namespace, commands in this process.

    Args:
        folder: Working folder; what a shell prints goes to `shell.txt` in it, and its `bin` holds the command
            `align3gr` of this checkout.
        patch: Undoes what is put in place of processes and variables.
        names: What the page takes for granted.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, names: dict[str, Any]) -> None:
        self.folder, self.patch = folder, patch
        self.namespace: dict[str, Any] = {"__name__": "__page__", **names}
        command = folder / "bin" / "align3gr"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m align3gr.cli "$@"\n')
        command.chmod(0o755)
        patch.chdir(folder)
        patch.setattr(cli, "resource", lambda name: ROOT / name)
        patch.setattr("align3gr.cli.call", self._script)

    def run(self, block: Block) -> None:
        """Raises what the code raises; a command that fails is an `AssertionError` that names it."""
        if block.language == "python":
            exec(compile(block.code, str(block), "exec"), self.namespace)
        elif SHELL_SYNTAX.search(re.sub(r"(^|\s)#.*|'[^']*'", "", block.code)):
            path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
            script = ["bash", "-c", f"set -eu; cd {shlex.quote(str(self.folder))}\n{block.code}"]
            status, printed = run(script, self.folder / "shell.txt", PATH=path)
            assert status == 0, f"{block}: status {status}\n{printed[-3000:]}"
            print(printed)
        else:
            for command in shell_commands(block.code):
                status = self._command(command)
                assert status == 0, f"{block}: status {status} of {shlex.join(command)}"

    def _command(self, words: list[str]) -> int:
        if words[0] == "export":
            for assignment in words[1:]:
                self.patch.setenv(*assignment.split("=", 1))
            return 0
        if words[0] == "python":
            return self._script([sys.executable, str(ROOT / words[1]), *words[2:]])
        if words[0] == "align3gr":
            return _status(lambda: cli.main(words[1:]))
        return subprocess.run(words).returncode

    def _script(self, command: list[str]) -> int:
        """A recipe in this process, which has its libraries loaded already; a launch of several in their own."""
        if command[1] == "-m":
            return subprocess.run(command).returncode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command[1:])
            return _status(lambda: runpy.run_path(command[1], run_name="__main__"))


def _status(call: Callable[[], object]) -> int:
    """The exit status of what ends by `sys.exit`, or returns."""
    try:
        call()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
