"""Publish: send an exported folder to the Hugging Face hub.

``python -m coda.push --folder DIR --repo NAME/REPO --dry_run`` lists what would be sent and contacts nobody.
"""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from jsonargparse import ActionYesNo, ArgumentParser

from coda.command import one_line_errors

REQUIRED = ("config.json", "tokenizer_config.json", "README.md")


def files_of(folder: Path) -> list[Path]:
    """What of ``folder`` is sent: all files, by name, but none that is hidden.

    Raises:
        ValueError: If it is no exported folder.
    """
    absent = [name for name in REQUIRED if not (folder / name).is_file()]
    if absent or not any(folder.glob("*.safetensors")):
        lacking = ", ".join(absent or ["weights"])
        raise ValueError(f"--folder {folder} is no exported folder: it lacks {lacking}; write one with coda.export")
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def main(folder: str, repo: str, private: bool = False, dry_run: bool = False, message: str = "Upload model") -> None:
    """Send an exported folder to the Hugging Face hub, as the user that ``hf auth login`` or ``$HF_TOKEN`` tells.

    Args:
        folder: What ``python -m coda.export`` wrote.
        repo: NAME/REPO on the hub; it is created unless it exists.
        private: Let only its owner see a repository that is created.
        dry_run: List what would be sent, and contact nobody.
        message: Of the commit.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--repo is {repo}, which is no name on the hub; give NAME/REPO ({error})") from error
    files = files_of(Path(folder))
    for path in files:
        print(f"{path.stat().st_size:>14,}  {repo}/{path.relative_to(folder)}")
    print(f"{sum(path.stat().st_size for path in files):>14,}  bytes in {len(files)} files")
    if dry_run:
        print("dry run: nothing was sent")
        return
    names = [str(path.relative_to(folder)) for path in files]
    api = HfApi()
    try:
        created = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        sent = api.upload_folder(
            repo_id=created.repo_id, folder_path=folder, repo_type="model", allow_patterns=names, commit_message=message
        )
    except (OSError, HTTPError) as error:
        raise ValueError(f"--repo {repo} could not be written: {error}; the same command again goes on") from error
    print(f"sent to {sent.commit_url}")


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m coda.push", description="Send an exported folder to the Hugging Face hub.")
    parser.add_function_arguments(main, as_positional=False, skip={"private", "dry_run"})
    parser.add_argument("--private", action=ActionYesNo, default=False, help="let only the owner see a new repository")
    parser.add_argument("--dry_run", action=ActionYesNo, default=False, help="list what would be sent, contact nobody")
    with one_line_errors():
        main(**parser.parse_args().as_dict())
