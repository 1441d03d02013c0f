"""docs/reference says of every public name what its docstring says, and every public name says what it takes."""

import importlib.util
import inspect

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "docs" / "make_reference.py"
spec = importlib.util.spec_from_file_location("make_reference", SCRIPT)
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


@pytest.fixture(scope="module")
def names():
    return reference.public_names()


def undocumented(doc: str, value, helps=(), names=()) -> list[str]:
    """Parameters that neither have an entry in a section, nor are named in the text, nor have a help text.

    A docstring may say whose arguments a function takes, as in "The arguments are those of [`every_item_rows`]."
    """
    for other in reference.re.findall(r"arguments are those of \[?`(\w+)`", doc):
        doc += "\n" + inspect.cleandoc(reference.find(names, other, "").value.__doc__)
    entries = {name for line in doc.splitlines() for name in reference.entry_names(line)} | set(helps)
    given = [p.name for p in reference.parameters(value) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [name for name in given if name not in entries and f"`{name}`" not in doc]


def describes_itself(value, name: str) -> bool:
    """Whether a class's parent in another library has a member of this name, which is documented there."""
    return any(name in vars(parent) for parent in value.__mro__[1:] if not reference.is_ours(parent))


def test_every_public_name_says_what_it_does_and_takes(names):
    silent = []
    for entry in filter(lambda entry: callable(entry.value), names):
        doc = inspect.cleandoc(entry.value.__doc__ or "")
        if not doc or doc.startswith(f"{entry.name}("):  # what `dataclass` writes by itself
            silent.append(f"{entry.package}.{entry.name}: no docstring")
        elif missing := undocumented(doc, entry.value, reference.field_helps(entry.value), names):
            silent.append(f"{entry.package}.{entry.name}: its docstring lacks {', '.join(missing)}")
    assert not silent, "\n".join(silent)


def test_every_public_method_says_what_it_does(names):
    import align3gr

    silent = []
    for entry in filter(lambda entry: inspect.isclass(entry.value), names):
        for name, member in reference.members(entry.value):
            doc = reference.member_doc(entry.value, name)
            if not doc and not describes_itself(entry.value, name):
                silent.append(f"{entry.package}.{entry.name}.{name}: no docstring")
            top = entry.name in align3gr.__all__ and doc and not isinstance(member, property)
            if missing := undocumented(doc, reference.function_of(member), names=names) if top else []:
                silent.append(f"{entry.name}.{name}: its docstring lacks {', '.join(missing)}")
    assert not silent, "\n".join(silent)


def test_the_pages_are_those_of_the_code():
    written = {path.name: path.read_text(encoding="utf-8") for path in reference.FOLDER.glob("*.md")}
    made = reference.make_pages()
    old = sorted(name for name in made.keys() | written.keys() if made.get(name) != written.get(name))
    assert not old, f"run `python docs/make_reference.py`: {', '.join(old)} of docs/reference are not up to date"


def test_every_public_name_has_its_heading(names):
    import align3gr
    import align3gr.scid

    pages = reference.make_pages()
    assert {entry.name for entry in names} >= {*align3gr.__all__, *align3gr.scid.__all__}
    for entry in names:
        assert f"\n## {entry.name}\n" in pages[entry.page], entry
    headings = [heading for page in pages.values() for heading in reference.re.findall(r"^## (\w+)$", page, 8)]
    assert len(headings) == len(names)


class Shelf:
    """A shelf of [`Recommender`]s <b> and [`Unknown`].

    >>> 1 + 1
    2

    Args:
        width: in
            metres.
        height, depth: too.

    Raises:
        ValueError: it falls.

    Example:

    ```python
    Shelf(1)
    ```
    """

    def __init__(self, width: int, *, height: float = 2.5, depth=None, **more: "str | None"):
        pass

    def load(self, books: list[str]) -> "Shelf":
        """Books `books`."""

    def _hidden(self):
        pass


def test_a_docstring_becomes_markdown(names):
    expected = """A shelf of [`Recommender`](decoding.md#recommender)s &lt;b> and `Unknown`.

```python
>>> 1 + 1
2
```

**Args**

- `width`: in
  metres.
- `height`, `depth`: too.

**Raises**

- `ValueError`: it falls.

**Example**

```python
Shelf(1)
```"""
    assert reference.markdown(Shelf.__doc__, names, "scid.md") == expected


def test_a_signature_reads_as_python():
    assert (
        reference.signature("Shelf", Shelf)
        == "Shelf(width: int, *, height: float = 2.5, depth=None, **more: str | None)"
    )
    assert reference.signature("load", Shelf.load) == "load(books: list[str]) -> Shelf"
    assert [name for name, _ in reference.members(Shelf)] == ["load"]


def test_what_a_docstring_leaves_out_is_found():
    assert undocumented(inspect.cleandoc(Shelf.__doc__), Shelf) == []
    assert undocumented("One line about `width`.", Shelf) == ["height", "depth"]
    assert undocumented("One line.", Shelf, helps=("width", "height")) == ["depth"]
