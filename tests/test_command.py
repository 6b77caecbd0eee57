"""How commands end."""

import pytest

from coda.command import one_line_errors


def end(error: Exception, *kinds: type[Exception]) -> None:
    with one_line_errors(*kinds):
        raise error


def test_a_setting_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"\Aerror: steps is 0\Z"):
        end(ValueError("steps is 0"))


UNION = (
    "Does not validate against any of the Union subtypes\nSubtypes: [str, X]\nErrors:\n  - Expected a <class 'str'>\n"
)


@pytest.mark.parametrize(
    ("account", "told"),
    [
        ("  - mesh is 3\nGiven value: X(mesh=3)", "mesh is 3"),
        ("  - mesh is 3\n  - size is 4\nGiven value: X(mesh=3)", "mesh is 3; or: size is 4"),
        ("Given value: X(mesh=3)", ".*Given value: X.mesh=3."),
    ],
)
def test_of_all_types_that_would_do_only_complaints_of_constructors_are_told(account: str, told: str) -> None:
    with pytest.raises(SystemExit, match=rf"\Aerror: {told}\Z"):
        end(ValueError(UNION + account))


def test_several_lines_become_one() -> None:
    with pytest.raises(SystemExit, match=r"\Aerror: no such model; look elsewhere\Z"):
        end(ValueError("no such model;\n  look elsewhere"))


def test_what_else_is_foreseen_is_one_line() -> None:
    with pytest.raises(SystemExit, match="error: full"):
        end(OSError("full"), OSError)


def test_what_is_not_foreseen_is_raised() -> None:
    with pytest.raises(OSError, match="full"):
        end(OSError("full"))


def test_the_traceback_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODA_TRACEBACK", "1")
    with pytest.raises(ValueError, match="steps is 0"):
        end(ValueError("steps is 0"))
