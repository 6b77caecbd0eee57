"""The README's commands parse as they stand; tests/test_cli.py runs those that need a trained model."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from main import main

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()


def commands(prefix: str) -> list[list[str]]:
    """The arguments of every README command line that starts with ``prefix``, comments and line breaks removed."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.strip(), comments=True) for line in lines if line.strip().startswith(prefix)]
    assert found, prefix
    return [words[len(prefix.split()) :] for words in found]


@pytest.mark.parametrize("arguments", commands("python main.py"), ids=" ".join)
def test_every_command_of_the_trainer_parses(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    extra = (
        [] if "--print_config" in arguments or any(word.endswith(".help") for word in arguments) else ["--print_config"]
    )
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["main.py", *arguments, *extra])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(module, words) for module in ("coda.export", "coda.push") for words in commands(f"python -m {module}")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_every_command_of_releasing_parses(
    module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What they work on is not there, which is all that is wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [module, *arguments])
    with pytest.raises(SystemExit, match=f"error: (no (checkpoint|model) at '|--folder ){arguments[1]}"):
        runpy.run_module(module, run_name="__main__")
    assert not list(tmp_path.iterdir())


def test_the_tree_names_what_exists() -> None:
    tree = README.split("```\nmain.py")[1].split("```")[0]
    folder = ""
    for line in ("main.py" + tree).splitlines():
        name = line.split()[0]
        path = folder + name if line.startswith("  ") else name
        folder = folder if line.startswith("  ") else (name if name.endswith("/") else "")
        assert (REPOSITORY / path).exists(), path


def test_make_targets_the_readme_names_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
