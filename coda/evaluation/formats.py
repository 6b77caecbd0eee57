"""From a record of a benchmark's file to its judge. A record of another format is a `ValueError` that names the field."""

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

from coda.evaluation.comparison import Rule
from coda.evaluation.judges import Assertions, Outputs

Record = Mapping[str, Any]
DATA_LINE = re.compile(r"^\s*(inputs|results) = (.*)$")


def name_of(record: Record) -> str:
    """How messages call a record."""
    return f"task {record['task_id']}" if "task_id" in record else "a task without task_id"


def text(record: Record, field: str) -> str:
    """A field that must be there and be text."""
    value = record.get(field)
    if not isinstance(value, str):
        what = "is missing" if value is None else f"is {type(value).__name__}, not text"
        raise ValueError(f"{name_of(record)}: field {field!r} {what}: is this file of another benchmark?")
    return value


def lines(record: Record, field: str, optional: bool = False) -> list[str]:
    """A field that must be a list of text."""
    value = record.get(field)
    if value is None and optional:
        return []
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        what = "is missing" if value is None else "is not a list of text"
        raise ValueError(f"{name_of(record)}: field {field!r} {what}: is this file of another benchmark?")
    return value


def parsed(record: Record, field: str, source: str) -> ast.Module:
    """The tree of a field's Python."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{name_of(record)}: field {field!r} is not Python: {error}") from None


def names_in(tree: ast.AST) -> set[str]:
    """Every name that is read somewhere in ``tree``."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def functions_in(body: Iterable[ast.stmt]) -> list[str]:
    """The functions and classes that a program defines at its top level."""
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def solution(record: Record) -> str:
    """HumanEval's canonical program, with the suffix that its infilling tasks have."""
    return text(record, "prompt") + text(record, "canonical_solution") + record.get("suffix", "")


def humaneval_judge(record: Record) -> Assertions:
    """HumanEval, and its infilling tasks: ``test`` defines ``check``, which calls ``entry_point``."""
    tests, entry_point = text(record, "test"), text(record, "entry_point")
    if "check" not in functions_in(parsed(record, "test", tests).body):
        raise ValueError(f"{name_of(record)}: field 'test' defines no function check: this is not HumanEval's layout")
    return Assertions(f"{tests}\ncheck({entry_point})\n", (entry_point,), solution(record))


def mbpp_judge(record: Record) -> Assertions:
    """MBPP: the asserts of ``test_list`` after ``test_imports`` and ``test_setup_code`` where there are such."""
    code = text(record, "code")
    asserts, imports = lines(record, "test_list"), lines(record, "test_imports", optional=True)
    if not asserts:
        raise ValueError(f"{name_of(record)}: field 'test_list' is empty: nothing would be tested")
    setup = "\n".join([*imports, record.get("test_setup_code") or ""]).strip()
    tests = "\n".join(asserts)
    called = names_in(parsed(record, "test_list", tests))
    own = functions_in(parsed(record, "test_setup_code", setup).body)
    defined = functions_in(parsed(record, "code", code).body)
    functions = tuple(name for name in dict.fromkeys(defined) if name in called and name not in own)
    if not functions:
        raise ValueError(f"{name_of(record)}: field 'test_list' calls none of the functions that 'code' defines")
    return Assertions(tests, functions, code, setup)


def humaneval_plus_judge(record: Record) -> Outputs:
    """HumanEval+ in the layout of the hub: inputs and results stand in ``test``, inside ``check``."""
    return plus_judge(record, text(record, "entry_point"))


def mbpp_plus_judge(record: Record) -> Outputs:
    """MBPP+ in the layout of the hub: inputs and results stand in ``test``, at its top level."""
    return plus_judge(record, None)


def plus_judge(record: Record, entry_point: str | None) -> Outputs:
    """The judge that an EvalPlus test describes: its data lines as they are, its rules read off what remains.

    The data lines are by far the largest part; they are parsed when a candidate is judged, never executed here.
    """
    test = text(record, "test")
    data, rest = split_data(test)
    if "inputs" not in data:
        raise ValueError(f"{name_of(record)}: field 'test' has no line 'inputs = ': this is not EvalPlus's layout")
    for name, value in data.items():
        if not (value.startswith("[") and value.rstrip().endswith("]")):
            raise ValueError(f"{name_of(record)}: field 'test' has no list on its line '{name} = ', or half of one")
    tree = parsed(record, "test", rest)
    loops = [calls_in(node) for node in ast.walk(tree) if isinstance(node, ast.For)]
    names, called = next((pair for pair in loops if {"assertion", "_poly"} & set(pair[0])), ([], []))
    if not called:
        raise ValueError(f"{name_of(record)}: field 'test' has no loop over its inputs: this is not EvalPlus's layout")
    reference = reference_of(tree) if "ref_func" in names else ""
    if not reference and "results" not in data:
        raise ValueError(f"{name_of(record)}: field 'test' has neither 'results = ' nor a reference function")
    if entry_point is None:
        entry_point = next(name for name in names if name not in ("assertion", "enumerate", "zip", "ref_func"))
    return Outputs(
        entry_point, data["inputs"], data.get("results"), tolerance_of(called), rule_of(tree, names), reference
    )


def calls_in(tree: ast.AST) -> tuple[list[str], list[ast.Call]]:
    """The calls in ``tree`` that name their function: the names, and the calls."""
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [ast.unparse(node.func) for node in called], called


def split_data(test: str) -> tuple[dict[str, str], str]:
    """The texts of ``inputs`` and ``results``, each on one line, and the test with None in their place."""
    data, rest = {}, []
    for line in test.split("\n"):
        found = DATA_LINE.match(line)
        if found:
            data[found[1]] = found[2]
            line = line[: found.start(2)] + "None"
        rest.append(line)
    return data, "\n".join(rest)


def tolerance_of(called: list[ast.Call]) -> float:
    """The third argument of the loop's ``assertion``."""
    for call in called:
        if isinstance(call.func, ast.Name) and call.func.id == "assertion" and len(call.args) == 3:
            return float(ast.literal_eval(call.args[2]))
    return 0.0


def rule_of(tree: ast.Module, names: list[str]) -> Rule:
    """The rule that the test's own ``assertion`` follows."""
    if "_poly" in names:
        return Rule.NEVER
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "assertion":
            source = ast.unparse(node)
            if "set(out)" in source:
                return Rule.AS_SET
            if "out is not None" in source:
                return Rule.NOT_NONE
    return Rule.EQUAL


def reference_of(tree: ast.Module) -> str:
    """What a test needs to compute its expected outputs: its imports and functions."""
    own = ("is_floats", "assertion", "check")
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef) and getattr(node, "name", "") not in own:
            kept.append(node)
    return ast.unparse(ast.Module(kept, []))
