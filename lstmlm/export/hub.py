"""A model to the Hugging Face Hub, where transformers and this package load it by its name."""

import tempfile
from pathlib import Path

from lstmlm.console import UserError, one_line
from lstmlm.export.transformers import export_transformers


def push_to_hub(model: str | Path | None, name: str, private: bool = False) -> str:
    """Make or update the model repository `name`, user/model, in one commit, whose address this gives; `private` is for a new one.

    Raises:
        UserError: The model cannot be read, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="lstmlm")
    with tempfile.TemporaryDirectory() as folder:
        export_transformers(model, folder)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="A model trained with lstmlm")
        except Exception as error:  # the Hub's client raises its transport's kinds too
            raise UserError(f"cannot push to {name}: {one_line(error)} (hf auth login, or HF_TOKEN, says who you are)") from None
    return str(commit.commit_url)
