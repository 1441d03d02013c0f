"""Writes docs/reference/ from the docstrings of the public names: `python docs/make_reference.py`.

Public are the names in `__all__` of align3gr and of its packages. Docstrings are Google's sections around Markdown, in
which [`Name`] is a link to a public name. tests/test_reference.py says when the pages are not those of the code.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

FOLDER = Path(__file__).parent / "reference"
WIDTH = 110  # of a signature on one line
_HEAD = """Written from the docstrings by `python docs/make_reference.py`: edit those, not these pages. What the names
are for is said in [the guides](../index.md)."""
_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|What differs from the parent):")
_ENTRY = re.compile(r"(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*)(?: \([^)]*\))?:\s+(.*)")
_LINK = re.compile(r"\[(`([\w.]+)(?:\(\))?`)\](?!\()")


@dataclass(frozen=True)
class PublicName:
    """A public name at its home, the package whose page describes it."""

    package: str
    name: str
    value: Any

    @property
    def page(self) -> str:
        return "README.md" if self.package == "align3gr" else f"{self.package.removeprefix('align3gr.')}.md"

    @property
    def link(self) -> str:
        return f"{self.page}#{self.name.lower()}"


def public_packages() -> dict[str, list[str]]:
    """The public names by package, in the order of the packages' names."""
    import align3gr

    found = {"align3gr": sorted(align3gr.__all__)}
    for module in pkgutil.iter_modules(align3gr.__path__, "align3gr."):
        names = getattr(importlib.import_module(module.name), "__all__", None) if module.ispkg else None
        if names:
            found[module.name] = sorted(names)
    return found


def public_names() -> list[PublicName]:
    """Every public thing once, at the package in which it is defined, or else the one that exports it last."""
    found: list[PublicName] = []
    for package, exported in reversed(public_packages().items()):
        for name in exported:
            value = getattr(importlib.import_module(package), name)
            twin = next((entry for entry in found if entry.name == name and entry.value is value), None)
            if (
                twin is not None
                and getattr(value, "__module__", "").startswith(f"{package}.")
                and package != "align3gr"
            ):
                found.remove(twin)
                twin = None
            if twin is None:
                found.append(PublicName(package, name, value))
    return found


def find(names: list[PublicName], name: str, page: str) -> PublicName | None:
    """What a page means by a name: its own first, where two packages have one."""
    return min((e for e in names if e.name == name), key=lambda entry: entry.page != page, default=None)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself."""
    for name, member in vars(kind).items():
        called = isinstance(member, classmethod | staticmethod | property) or inspect.isfunction(member)
        if called and not name.startswith("_"):
            yield name, member


def function_of(member: Any) -> Any:
    """The function behind a method, class method or property."""
    member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return inspect.unwrap(member)


def member_doc(kind: type, name: str) -> str:
    """The docstring of a member: its own, a parent's, or that of the public protocol of its package."""
    for parent in kind.__mro__:
        if name in vars(parent) and (doc := function_of(vars(parent)[name]).__doc__):
            return inspect.cleandoc(doc) if is_ours(parent) else ""
    package = importlib.import_module(".".join(kind.__module__.split(".")[:2]))
    for other in getattr(package, "__all__", ()):
        protocol = getattr(package, other)
        if inspect.isclass(protocol) and Protocol in protocol.__bases__ and name in vars(protocol):
            return f"See [`{other}`]: " + inspect.cleandoc(function_of(vars(protocol)[name]).__doc__ or "")
    return ""


def is_ours(kind: type) -> bool:
    """Whether a class is align3gr's own."""
    return kind.__module__.startswith("align3gr")


def parameters(value: Any) -> list[inspect.Parameter]:
    """What a caller may pass: of a class that extends a dataclass of another library, its own fields alone."""
    if inspect.isclass(value) and (issubclass(value, BaseException) or Protocol in value.__bases__):
        return []  # nobody makes a protocol; an exception takes a message
    found = list(inspect.signature(value).parameters.values())
    options = [p for p in getattr(value, "__mro__", ()) if dataclasses.is_dataclass(p)]
    own = {name for parent in options if is_ours(parent) for name in inspect.get_annotations(parent)}
    if own and not is_ours(options[-1]):
        found = [parameter for parameter in found if parameter.name in own]
    return [parameter for parameter in found if parameter.name not in ("self", "cls")]


def field_helps(value: Any) -> dict[str, str]:
    """Help texts of a dataclass of options, by field."""
    if not (inspect.isclass(value) and dataclasses.is_dataclass(value)):
        return {}
    helps = {field.name: field.metadata.get("help") for field in dataclasses.fields(value)}
    return {name: text for name, text in helps.items() if text}


def entry_names(line: str) -> list[str]:
    """The arguments that a line of a section is about."""
    entry = _ENTRY.match(line.strip()) if line.startswith("    ") else None
    return [name.strip().lstrip("*") for name in entry[1].split(",")] if entry else []


def _annotation(kind: Any) -> str:
    """A type as it is written today; Python's own text of it changes from version to version."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_annotation, inner))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin is not None and inner:
        return f"{_annotation(origin)}[{', '.join(map(_annotation, inner))}]"
    if isinstance(kind, list):  # arguments of a Callable
        return f"[{', '.join(map(_annotation, kind))}]"
    known = {types.NoneType: "None", None: "None", ...: "..."}
    text = kind if isinstance(kind, str) else known.get(kind) or getattr(kind, "__name__", str(kind))
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)


def _default(value: Any) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    return "..." if text.startswith("<") or len(text) > 60 else text


def signature(name: str, value: Any) -> str:
    """A call of it with types and defaults, as Python would write it."""
    parts, star = [], False
    for parameter in parameters(value):
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f"{' = ' if ':' in text else '='}{_default(parameter.default)}"
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        parts.append(text)
    result = "" if inspect.isclass(value) else inspect.signature(value).return_annotation
    arrow = "" if result in ("", inspect.Signature.empty) else f" -> {_annotation(result)}"
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){arrow}"


def _text(line: str, names: list[PublicName], page: str) -> str:
    """A line of prose: links to public names, and no `<` that a browser would take for a tag."""

    def link(match: re.Match[str]) -> str:
        name, _, member = match[2].partition(".")
        target = find(names, name, page)
        if target is None:
            return match[1]
        own = member if member and member in vars(target.value) and member_doc(target.value, member) else ""
        return f"[{match[1]}]({target.link.removeprefix(page)}{own.lower()})"

    pieces = re.split(r"(`[^`]*`)", _LINK.sub(link, line))
    return "".join(piece if piece.startswith("`") else piece.replace("<", "&lt;") for piece in pieces)


def markdown(doc: str, names: list[PublicName], page: str) -> str:
    """A docstring as Markdown: sections become lists, examples become code."""
    written: list[str] = []
    section, fenced, prompt = "", False, False
    for line in inspect.cleandoc(doc).splitlines():
        inside = line.startswith("    ") and not fenced
        if prompt and not line.strip():
            written.append("```")
            prompt = False
        if line.strip().startswith("```"):
            fenced = not fenced
        if fenced or prompt or line.strip().startswith("```"):
            written.append(line.strip() if prompt else line)
        elif line.strip().startswith(">>>"):
            written += ["", "```python", line.strip()]
            prompt = True
        elif found := _SECTION.fullmatch(line):
            section = found[1]
            written += ["", f"**{section}**", ""]
        elif section and inside:
            entry = None if section in ("Returns", "Yields") else _ENTRY.match(line[4:])
            if entry and not line[4:].startswith(" "):
                quoted = ", ".join(f"`{name.strip()}`" for name in entry[1].split(","))
                written.append(f"- {quoted}: {_text(entry[2], names, page)}")
            else:
                written.append(
                    ("  " if written[-1].startswith(("-", "  ")) else "") + _text(line.strip(), names, page)
                )
        else:
            section = section if not line.strip() else ""
            written.append(_text(line, names, page))
    return re.sub(r"\n{3,}", "\n\n", "\n".join([*written, "```"] if prompt else written)).strip()


def describe(entry: PublicName, names: list[PublicName]) -> str:
    """The section of one name: signature, source, docstring, and of a class its members."""
    value, blocks = entry.value, [f"## {entry.name}"]
    if not (inspect.isclass(value) or callable(value)):
        shown = "\n".join(textwrap.wrap(", ".join(f"`{part}`" for part in value), 115, break_long_words=False))
        return "\n\n".join([*blocks, shown if isinstance(value, dict | tuple | list) else f"`{value!r}`"])
    module = value.__module__.replace(".", "/")
    blocks.append(f"From [{module}.py](../../{module}.py).")
    if parameters(value) or not inspect.isclass(value):
        blocks.append(f"```python\n{signature(entry.name, value)}\n```")
    doc = inspect.cleandoc(value.__doc__ or "")
    blocks.append(markdown(doc, names, entry.page))
    named = {name for line in doc.splitlines() for name in entry_names(line)}
    helps = field_helps(value)
    if options := [p.name for p in parameters(value) if p.name in helps and p.name not in named]:
        lines = (f"- `{name}`: {_text(helps[name], names, entry.page)}" for name in options)
        blocks.append("\n".join(["**Options**", "", *lines]))
    for name, member in members(value) if inspect.isclass(value) else ():
        if text := member_doc(value, name):
            call = name if isinstance(member, property) else signature(name, function_of(member))
            head = f"### {entry.name}.{name}\n\n```python\n{call}\n```"
            blocks.append(f"{head}\n\n{markdown(text, names, entry.page)}")
    return "\n\n".join(blocks)


def _first_paragraph(doc: str, names: list[PublicName], page: str) -> str:
    return markdown(doc.split("\n\n")[0].replace("\n", " "), names, page)


def _listed(entry: PublicName, names: list[PublicName], page: str) -> str:
    """A name with the beginning of its docstring, as an item of a list on this page."""
    line = f"- [`{entry.name}`]({entry.link.removeprefix(page)})"
    if callable(entry.value):
        line += f": {_first_paragraph(inspect.getdoc(entry.value) or '', names, page)}"
    return line


def make_pages() -> dict[str, str]:
    """The text of every page, by file name."""
    names, pages, table = public_names(), {}, []
    for package, exported in reversed(public_packages().items()):
        module = importlib.import_module(package)
        doc = inspect.cleandoc(module.__doc__ or "")
        page = PublicName(package, "", None).page
        homes = [next(e for e in names if e.name == n and e.value is getattr(module, n)) for n in exported]
        listed = "\n".join(_listed(home, names, page) for home in homes)
        blocks = [describe(home, names) for home in homes if home.package == package]
        if package == "align3gr":
            packages = "| package | names | |\n|---|---:|---|\n" + "\n".join(reversed(table))
            blocks = ["# Reference", _HEAD, packages, "Straight from `align3gr`:", listed, *blocks]
        else:
            blocks = [f"# {package}", markdown(doc, names, page), listed, *blocks]
            table.append(f"| [`{package}`]({page}) | {len(exported)} | {_first_paragraph(doc, names, 'README.md')} |")
        pages[page] = "\n\n".join(blocks) + "\n"
    return pages


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    pages = make_pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{FOLDER}: {len(pages)} pages")


if __name__ == "__main__":
    main()
