"""From what a model wrote to a program: fences, prose and trailing text are left out, what is cut short is mended.

Linear in the length of the text: it is parsed piece by piece, every line a bounded number of times. (Trying all pairs of
first and last line, as EvalPlus 0.3.1 does, is cubic.)
"""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_LINES = 1000  # of a text; what comes behind is not read
MAX_CHARACTERS = 100_000
PIECES_JOINED = 6  # pieces that one statement may span: strings with text in the first column, lists, else branches
CUTS = 12  # lines, about, that may be missing at the end of a function for the rest to count

FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
# In the first column these go on with a statement, or close one: never its beginning.
CONTINUES = re.compile(r"(?:else|elif|except|finally|case)\b|[)\]}#]|\"\"\"|'''|\s|$")
UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Statement:
    """A top-level statement: its syntax tree and its text."""

    node: ast.stmt
    text: str

    @property
    def names(self) -> set[str]:
        """What it defines."""
        if isinstance(self.node, Definition):
            return {self.node.name}
        return _stored(self.node)

    @property
    def uses(self) -> set[str]:
        """Names that it reads; a definition's own parameters and variables are none of them."""
        inside = list(ast.walk(self.node))
        read = {node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        if not isinstance(self.node, Definition):
            return read
        declared = {name for node in inside if isinstance(node, ast.Global) for name in node.names}
        return read - (_stored(self.node) | {node.arg for node in inside if isinstance(node, ast.arg)}) | declared


def extract(completion: str, entry_point: str | None, context: str = "", continues: bool = False) -> str:
    """Make a program of a completion.

    The program has the imports and what the entry point needs, and nothing that would run besides: no example, no test,
    no prose. Without an entry point, all definitions, imports and assignments are kept.

    Args:
        completion: What the model wrote behind its prompt.
        entry_point: The function that will be called; None if that is not known.
        context: The code that the prompt ended with, such as a function head.
        continues: The completion was asked to go on with ``context``; else it should stand by itself, and is taken for
            the rest of ``context`` only if it does not define the entry point.

    Returns:
        A program; or ``context`` and ``completion`` as they are, if there is no sign of one.
    """
    fenced = code_of(completion)
    ways = [(context + completion, True), (fenced, False), (context + fenced, True)]
    for text, first in ways if continues else ways[1:]:
        statements = statements_of(text)
        found = [statement for statement in statements if entry_point in statement.names and _has_body(statement)]
        if entry_point is None and (kept := [statement for statement in statements if _is_kept(statement)]):
            return _joined(kept)
        if found:
            chosen = found[0] if first else found[-1]
            given = [head for head in statements_of(context) if entry_point not in head.names]
            names = set().union(*(head.names for head in given))  # what tests may call as well
            return _joined(_needed(chosen, statements if first else [*given, *statements], entry_point, names))
    return context + completion


def code_of(text: str) -> str:
    """The code in a text of prose and fenced blocks; the text itself if nothing is fenced.

    A first fence that closes a block opened by the prompt ends the code. Otherwise the longest block is taken, also one
    that is never closed.
    """
    text = _capped(text)
    fences = list(FENCE.finditer(text))
    if not fences:
        return text
    before = text[: fences[0].start()]
    bare, odd = fences[0].group().strip() in ("```", "~~~"), len(fences) % 2 == 1
    if bare and (before[:1].isspace() or _has_code(before) or (odd and not _has_code(text[fences[0].end() :]))):
        return before
    ends = [fence.start() for fence in fences[1::2]] + [len(text)] * (len(fences) % 2)
    blocks = [text[fence.end() : end].strip("\n") for fence, end in zip(fences[::2], ends, strict=True)]
    return max(blocks, key=len) + "\n"


def statements_of(text: str) -> list[Statement]:
    """The top-level statements of a text, as far as it is Python; prose between them is passed over."""
    lines = _capped(text).split("\n")
    starts = [number for number, line in enumerate(lines) if not CONTINUES.match(line)]
    ends = [*starts[1:], len(lines)]
    found: list[Statement] = []
    piece = 0
    while piece < len(starts):
        for last in range(piece, min(piece + PIECES_JOINED, len(starts))):
            body = parse("\n".join(lines[starts[piece] : ends[last]]))
            if body:
                break
        else:
            last = piece
            body = _mended(lines[starts[piece] : ends[piece]])
        found += body
        piece = last + 1
    return found


def parse(text: str) -> list[Statement]:
    """The statements of a piece of Python; none if it is not."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except UNPARSABLE:
        return []
    lines = text.split("\n")
    return [Statement(node, "\n".join(lines[_first_line(node) - 1 : node.end_lineno])) for node in tree.body]


def _mended(lines: list[str]) -> list[Statement]:
    """A definition that is cut short or goes over into something else, without the lines that do not parse."""
    if not re.match(r"(?:async\s+def|def|class|@)\b", lines[0]):
        return []
    for _ in range(CUTS):
        try:
            with warnings.catch_warnings(action="ignore"):
                ast.parse("\n".join(lines))
            return parse("\n".join(lines))
        except SyntaxError as error:
            lines = lines[: min((error.lineno or len(lines)) - 1, len(lines) - 1)]
        except UNPARSABLE:
            return []
        if not lines:
            return []
    return []


def _needed(
    entry: Statement, statements: list[Statement], entry_point: str | None, names: set[str]
) -> Iterator[Statement]:
    """The entry point, imports, and the statements that define ``names`` and what all these use; in their order."""
    definers: dict[str, list[Statement]] = {}
    for statement in statements:
        for name in statement.names if _is_kept(statement) and entry_point not in statement.names else ():
            definers.setdefault(name, []).append(statement)
    wanted, seen = [*(entry.uses | names)], {id(entry)}
    while wanted:
        for statement in definers.pop(wanted.pop(), []):
            seen.add(id(statement))
            wanted += statement.uses
    return (statement for statement in statements if id(statement) in seen or _is_import(statement))


def _has_code(text: str) -> bool:
    return any(_is_kept(statement) for statement in statements_of(text))


def _stored(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _is_kept(statement: Statement) -> bool:
    return isinstance(statement.node, Definition | ast.Assign | ast.AnnAssign | ast.AugAssign) or _is_import(statement)


def _is_import(statement: Statement) -> bool:
    """An import, also one with a way out in ``try``."""
    node = statement.node
    inner = (
        [*node.body, *(line for handler in node.handlers for line in handler.body)] if isinstance(node, ast.Try) else []
    )
    return isinstance(node, ast.Import | ast.ImportFrom) or any(
        isinstance(line, ast.Import | ast.ImportFrom) for line in inner
    )


def _has_body(statement: Statement) -> bool:
    """Whether a function does something; a docstring or ``...`` alone is a head that nothing was added to."""
    node = statement.node
    if not isinstance(node, Definition):
        return True
    return not all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in node.body)


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, Definition) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _joined(statements: Iterable[Statement]) -> str:
    # Imports from the future come first, or not at all.
    ordered = sorted(statements, key=lambda statement: getattr(statement.node, "module", None) != "__future__")
    return "".join(f"{statement.text}\n" for statement in ordered)


def _capped(text: str) -> str:
    # Form feeds and their like are whitespace to Python but line ends to nobody else; \r\n is one line end.
    text = text[:MAX_CHARACTERS].replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(text.split("\n", MAX_LINES)[:MAX_LINES])
