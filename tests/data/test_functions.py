"""The standard library's functions as instructions: every body belongs to its signature and docstring."""

import ast
from pathlib import Path
from typing import Any

import pytest

from coda.data import StandardLibraryFunctions
from coda.data.conversations import TASK
from coda.data.sources import Conversation

CODE = '''
class Queue:
    def push(self, item):
        """Put the item at the end of the queue."""
        if item is None:
            raise ValueError("""nothing
to push""")
\x0c
        # a comment
        self.items.append(item)


@decorated
async def fetch(
    url: str = "a\u2028b",
) -> bytes:
    """Return what is behind the URL,
  as it is, whatever
    that may be.
    """
    a = 1  # \x0b
    b = "é"

    def inner():
        """A function inside of another one."""
        x = 1
        y = 2
        return x + y
    return a

def tabbed():
\t"""Indented by tabs: one column each."""
\tif 1:
\t\treturn (
1)
\treturn 2

def undocumented():
    a = 1
    b = 2
    return a

def brief():
    """Too short."""
    a = 1
    b = 2
    return a

def small():
    """A docstring that is long enough."""
    a = 1
    return a

def only_documented():
    """A docstring that is long enough."""
'''


class Functions(StandardLibraryFunctions):
    """Those of a folder."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder

    def root(self) -> Path:
        return self.folder


def conversations(source: StandardLibraryFunctions) -> list[Conversation]:
    documents = list(source.documents())
    assert all(isinstance(document, tuple) for document in documents)
    return documents  # type: ignore[return-value]


def pairs(folder: Path, code: str = CODE, **options: Any) -> dict[str, tuple[str, str]]:
    """Head and body of every function, by name."""
    (folder / "code.py").write_text(code)
    return {function_of(c).name: halves(c) for c in conversations(Functions(folder, **options))}


def halves(conversation: Conversation) -> tuple[str, str]:
    (asker, asked), (answerer, answer) = conversation
    assert (asker, answerer, asked[: len(TASK)]) == ("user", "assistant", TASK)
    return asked[len(TASK) :], answer


def function_of(conversation: Conversation) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The one function that head and body make."""
    (function,) = ast.parse("\n".join(halves(conversation))).body
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    return function


def shape(function: ast.AST) -> str:
    """The function but for decorators, and for spaces in strings, which its indentation goes through."""
    tree = ast.parse(ast.unparse(function)).body[0]
    tree.decorator_list = []  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = "".join(node.value.split())
    return ast.dump(tree)


@pytest.fixture(scope="module")
def library() -> list[Conversation]:
    return conversations(StandardLibraryFunctions())


def test_there_are_thousands(library: list[Conversation]) -> None:
    assert len(library) > 2000


def test_every_function_of_the_library_is_whole(library: list[Conversation]) -> None:
    for conversation in library:
        head, body = halves(conversation)
        function = function_of(conversation)
        docstring = ast.get_docstring(function)
        assert docstring is not None and len(docstring) >= 20
        assert 3 <= len(body.split("\n")) <= 60
        assert head.startswith(("def ", "async def "))
        assert ast.get_docstring(ast.parse(head).body[0]) == docstring  # type: ignore[arg-type]  # the head alone has it


def test_every_pair_is_a_function_that_stands_in_its_file(library: list[Conversation]) -> None:
    source = StandardLibraryFunctions()
    part = source.parts()[0][:60]
    originals = set()
    for path in part:
        tree = ast.parse(Path(path).read_text(encoding="utf-8", errors="replace"))
        originals |= {shape(n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    found = [item for item in source.read(part) if isinstance(item, tuple)]
    assert len(found) > 50
    assert {shape(function_of(conversation)) for conversation in found} <= originals


def test_only_documented_functions_of_some_length_are_taken(tmp_path: Path) -> None:
    assert set(pairs(tmp_path)) == {"push", "fetch", "inner", "tabbed"}


def test_a_method_loses_its_indentation_and_nothing_else(tmp_path: Path) -> None:
    head, body = pairs(tmp_path)["push"]
    assert head == 'def push(self, item):\n    """Put the item at the end of the queue."""'
    assert body.split("\n") == [
        "    if item is None:",
        '        raise ValueError("""nothing',
        'to push""")',
        "\x0c",
        "    # a comment",
        "    self.items.append(item)",
    ]


def test_a_head_has_all_its_lines(tmp_path: Path) -> None:
    head, body = pairs(tmp_path)["fetch"]
    assert head.startswith('async def fetch(\n    url: str = "a\u2028b",\n) -> bytes:\n    """Return')
    assert head.endswith('    that may be.\n    """')
    assert body.startswith('    a = 1  # \x0b\n    b = "é"\n\n    def inner():\n')
    assert body.endswith("    return a")


def test_tabs_are_kept(tmp_path: Path) -> None:
    head, body = pairs(tmp_path)["tabbed"]
    assert head == 'def tabbed():\n\t"""Indented by tabs: one column each."""'
    assert body == "\tif 1:\n\t\treturn (\n1)\n\treturn 2"


@pytest.mark.parametrize(
    ("bounds", "names"),
    [
        ({"least_docstring": 1}, {"push", "fetch", "inner", "tabbed", "brief"}),
        ({"least_docstring": 30}, {"push", "fetch", "inner", "tabbed"}),
        ({"least_docstring": 34}, {"push", "fetch", "tabbed"}),
        ({"least_lines": 2}, {"push", "fetch", "inner", "tabbed", "small"}),
        ({"least_lines": 5}, {"push", "fetch"}),
        ({"most_lines": 4}, {"inner", "tabbed"}),
        ({"most_lines": 3}, {"inner"}),
    ],
    ids=str,
)
def test_the_bounds_decide(bounds: dict[str, int], names: set[str], tmp_path: Path) -> None:
    assert set(pairs(tmp_path, **bounds)) == names
    assert Functions(tmp_path, **bounds).fingerprint() != Functions(tmp_path).fingerprint()


def test_files_that_are_no_python_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "null.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "latin.py").write_bytes('# coding: latin-1\nx = "é"\n'.encode("latin-1"))
    assert set(pairs(tmp_path)) == {"push", "fetch", "inner", "tabbed"}
