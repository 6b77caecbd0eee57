"""Publishing: the dry run says everything and contacts nobody; the real one sends exactly what it said."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from huggingface_hub import CommitInfo, HfApi

import coda.push
from coda.data.tokenizer import train_tokenizer
from coda.export import export
from coda.push import main
from tests.test_export import TEXT, small_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "model"
    tokenizer = train_tokenizer([TEXT] * 3, 270)
    export(small_model(tokenizer), tokenizer, folder, max_shard_size="10KB")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "token").write_text("secret")
    return folder


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An HfApi that checks its arguments as the real one would, and answers without a network."""
    fake = create_autospec(HfApi, instance=True)
    fake.create_repo.side_effect = lambda repo, **_: SimpleNamespace(repo_id=f"me/{repo}" if "/" not in repo else repo)
    fake.upload_folder.return_value = create_autospec(CommitInfo, commit_url="https://hub/me/model/commit/1")
    monkeypatch.setattr(coda.push, "HfApi", lambda: fake)
    return fake


def listed(printed: str) -> dict[str, int]:
    rows = (line.split() for line in printed.splitlines() if "/" in line and line.strip()[0].isdigit())
    return {target: int(size.replace(",", "")) for size, target in rows}


def test_a_dry_run_lists_every_file_and_contacts_nobody(
    exported: Path, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    main(str(exported), "me/model", dry_run=True)
    printed = capsys.readouterr().out
    visible = [path for path in exported.iterdir() if path.name != ".cache"]
    assert listed(printed) == {f"me/model/{path.name}": path.stat().st_size for path in visible}
    assert {"me/model/model.safetensors.index.json", "me/model/modeling_coda.py", "me/model/README.md"} <= set(
        listed(printed)
    )
    assert f"{sum(path.stat().st_size for path in visible):,}  bytes in {len(visible)} files" in printed
    assert api.mock_calls == []


@pytest.mark.parametrize(("repo", "target"), [("me/model", "me/model"), ("model", "me/model")], ids=["full", "own"])
@pytest.mark.parametrize("private", [True, False])
def test_what_was_listed_is_sent(
    exported: Path, api: Any, capsys: pytest.CaptureFixture[str], private: bool, repo: str, target: str
) -> None:
    main(str(exported), repo, private=private, message="mine")
    api.create_repo.assert_called_once_with(repo, repo_type="model", private=private, exist_ok=True)
    sent = api.upload_folder.call_args.kwargs
    patterns = sent.pop("allow_patterns")
    assert sent == {
        "repo_id": target,
        "folder_path": str(exported),
        "repo_type": "model",
        "commit_message": "mine",
    }
    printed = capsys.readouterr().out
    assert {f"{repo}/{name}" for name in patterns} == set(listed(printed))
    assert ".cache/token" not in patterns
    assert printed.endswith("sent to https://hub/me/model/commit/1\n")


@pytest.mark.parametrize("name", ["config.json", "README.md", "tokenizer_config.json"])
def test_what_is_no_export_is_not_sent(exported: Path, api: Any, tmp_path: Path, name: str) -> None:
    for path in exported.iterdir():
        if path.is_file() and path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=f"--folder {tmp_path} is no exported folder: it lacks {name}; write one with"):
        main(str(tmp_path), "me/model")
    assert api.mock_calls == []


def test_a_folder_without_weights_is_not_sent(exported: Path, api: Any, tmp_path: Path) -> None:
    for path in exported.glob("*.*"):
        if path.is_file() and path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="it lacks weights"):
        main(str(tmp_path), "me/model")


def test_a_name_that_the_hub_refuses_is_told_first(exported: Path, api: Any) -> None:
    with pytest.raises(ValueError, match="--repo is me/my/model, which is no name on the hub; give NAME/REPO"):
        main(str(exported), "me/my/model", dry_run=True)


def test_a_hub_that_cannot_be_reached_is_one_line(exported: Path) -> None:
    """The session is offline (conftest)."""
    with pytest.raises(ValueError, match=r"--repo me/model could not be written: .*offline.*; the same command again"):
        main(str(exported), "me/model")
