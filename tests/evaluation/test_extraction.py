"""Programs out of what models write, clean or not."""

import ast
from typing import Any

import pytest

from coda.evaluation.extraction import MAX_LINES, extract, statements_of

HEAD = 'from math import pi\n\n\ndef helper(x):\n    return x + 1\n\n\ndef f(x):\n    """Double it."""\n'
BODY = "    y = x\n    return y + x\n"
WHOLE = HEAD + BODY


def run(program: str, *arguments: Any, entry_point: str = "f") -> Any:
    names: dict[str, Any] = {}
    exec(program, names)
    return names[entry_point](*arguments)


@pytest.mark.parametrize(
    "completion",
    [
        WHOLE,
        f"{WHOLE}\n```\nThis doubles the number.\n",
        f"{WHOLE}```",
        f"Here is the solution:\n\n```python\n{WHOLE}```\nIt returns `y + x`.",
        f"```\n{WHOLE}\n```",
        f"```python\n{WHOLE}",
        f"Sure\n{WHOLE}\nThis function doubles. I hope that it helps!\n",
        f"{WHOLE}\nprint(f(undefined))\nassert f(1) == 3\n",
        f"{WHOLE}\nif __name__ == '__main__':\n    f(int(input()))\n",
        f"{WHOLE}\n\ndef g(x):\n    return [\n",
        f"{WHOLE}\n```\nAnother way:\n```python\nassert f(2) == 4\n```\n",
        WHOLE.replace("\n", "\r\n"),
        f"~~~py\n{WHOLE}~~~",
    ],
    ids=[
        *("clean", "closed", "closed at the end", "prose", "bare fence", "never closed", "unfenced prose", "tests"),
        *("main", "cut helper", "example", "crlf", "tildes"),
    ],
)
def test_a_whole_function_is_found_whatever_surrounds_it(completion: str) -> None:
    program = extract(completion, "f", HEAD)
    assert run(program, 21) == 42
    assert "input" not in program
    assert "undefined" not in program


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize(
    "rest", ["", "\n\ndef f(x):\n    return None\n\nprint(f(1))\n", "```\nDone.\n", "\n# Test\nassert 0\n"]
)
def test_a_body_goes_on_with_the_head(continues: bool, rest: str) -> None:
    answers = BODY + rest
    expected = 8 if continues or "def f" not in rest else None  # an answer that defines the function stands by itself
    assert run(extract(answers, "f", HEAD, continues), 4) == expected


def test_of_a_completion_the_first_definition_counts_and_of_an_answer_the_last() -> None:
    twice = "def f(x):\n    return 1\n\n\ndef f(x):\n    return 2\n"
    assert run(extract(twice, "f", "", continues=True), 0) == 1
    assert run(extract(twice, "f", ""), 0) == 2


def test_what_the_head_defines_stays_though_the_answer_does_not_repeat_it() -> None:
    program = extract("def f(x):\n    return helper(x) * pi\n", "f", HEAD)
    assert run(program, 0) == pytest.approx(3.14159, abs=1e-4)
    assert run(program, 1, entry_point="helper") == 2


def test_helpers_constants_and_classes_that_are_used_are_kept_in_any_order() -> None:
    answer = (
        "def f(x):\n    return Box(g(x)).value\n\n\nSCALE = 3\n\n\ndef g(x):\n    return SCALE * x\n\n\n"
        "class Box:\n    def __init__(self, value):\n        self.value = value\n\n\nunused = f(input())\n"
    )
    program = extract(answer, "f")
    assert run(program, 2) == 6
    assert "unused" not in program


def test_a_global_that_shares_a_name_with_a_local_variable_is_not_run() -> None:
    assert run(extract("def f(x):\n    result = x\n    return result\n\n\nresult = 1 / 0\n", "f"), 3) == 3


def test_an_import_with_a_way_out_is_kept() -> None:
    way_out = "try:\n    import nothing_of_that_name as m\nexcept ImportError:\n    import math as m\n"
    assert run(extract(f"{way_out}\n\ndef f(x):\n    return m.floor(x)\n", "f"), 2.5) == 2


def test_an_import_from_the_future_stays_in_front_of_those_of_the_head() -> None:
    answer = "from __future__ import annotations\n\n\ndef f(x: Missing):\n    return x * pi\n"
    assert run(extract(answer, "f", HEAD), 1) == pytest.approx(3.14159, abs=1e-4)


def test_decorators_and_strings_in_the_first_column_belong_to_their_function() -> None:
    function = '@functools.cache\ndef f(x):\n    text = """\nfirst\n\nsecond\n"""\n    return len(text) + x\n'
    assert run(extract(f"import functools\n\n\n{function}", "f"), 0) == len("\nfirst\n\nsecond\n")


@pytest.mark.parametrize(
    "tail",
    ["    if x", "    for i in range(3):\n", "    return [x,\n           x", "    '''unfinished", "    x = (1 +\n"],
)
def test_a_function_that_is_cut_short_keeps_its_complete_lines(tail: str) -> None:
    assert run(extract(f"def f(x):\n    if x:\n        return 1\n    y = 2\n{tail}", "f"), 5) == 1


def test_a_head_with_nothing_but_a_docstring_is_no_solution() -> None:
    assert extract(HEAD, "f", HEAD) == HEAD + HEAD


def test_text_without_code_comes_back_as_it_is() -> None:
    assert extract("I do not know.", "f", "") == "I do not know."
    assert extract("", "f", HEAD) == HEAD


def test_without_an_entry_point_definitions_and_imports_are_kept() -> None:
    program = extract("import math\nx = 1\n\n\ndef g():\n    return x\n\n\nprint(g())\n", None)
    assert run(program, entry_point="g") == 1
    assert "print" not in program


HOSTILE = {
    "operators": "-" * 90_000 + "1",
    "attributes": "a" + ".b" * 40_000,
    "brackets": "(" * 90_000,
    "sums": "x" + "+1" * 49_000,
    "open lines": "x = (\n" * 1000,
    "bad heads": "def f(:\n" * 1000,
    "prose": "hello world\n" * 1000,
    "quotes": '"""\n' * 1000,
    "braces": "{" * 150,
    "fences": "```\n" * 1000,
    "unclosed lists": "def f():\n" + "  x = [\n" * 999,
    "many cut functions": "".join(f"def f{i}(x):\n  return (\n" for i in range(500)),
    "null bytes": "def f():\n    return '\0'\n",
    "half a surrogate pair": "def f():\n    return '\ud800'\n",
    "digits": "x = " + "9" * 50_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_every_character_is_parsed_a_bounded_number_of_times(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of text that never parses. To try all pairs of lines would be some hundred thousand times."""
    parse, parsed = ast.parse, []

    def counted(source: str) -> ast.Module:
        parsed.append(len(source))
        return parse(source)

    monkeypatch.setattr(ast, "parse", counted)
    extract(text, "f", HEAD)
    assert sum(parsed) <= 100 * (len(text) + len(HEAD))


def test_lines_behind_the_cap_are_not_read() -> None:
    assert len(statements_of("x = 1\n" * (MAX_LINES + 500))) == MAX_LINES
