"""Where a base model is: shipped with the package, in a directory, in the local cache, or fetched from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from edgefed.errors import ModelError
from edgefed.models.checkpoint import check_directory

__all__ = ["BUNDLED", "resolve_model"]

BUNDLED: Mapping[str, str] = {"edgefed/tiny-t5": "tiny_t5"}
"""Names of the models that ship with the package, and their directories in ``edgefed/assets``."""

_WANTED_FROM_HUB = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "spiece.model",
    "special_tokens_map.json",
)


def resolve_model(name: str, overrides: Mapping[str, str] | None = None) -> Path:
    """Return the directory of a base model, downloading it only when nothing here has it.

    Tried in this order: `overrides`, the models that ship with edgefed, a local directory, the local Hugging Face
    cache, the hub.

    Args:
        name: a bundled name such as ``edgefed/tiny-t5``, a directory, or a hub id such as ``google/flan-t5-small``.
        overrides: directories to take instead, by name; for machines that keep their models elsewhere.

    Raises:
        ModelError: nothing has it, or what was found is no complete model; says what was looked for and what to do.
    """
    if overrides and name in overrides:
        return check_directory(Path(overrides[name]).expanduser())
    if name in BUNDLED:
        return check_directory(Path(str(resources.files("edgefed.assets"))) / BUNDLED[name])
    local = Path(name).expanduser()
    if name.strip() and local.is_dir():
        return check_directory(local)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise ModelError(
            f"there is no model directory {name!r}; give an existing directory, a Hugging Face id such as "
            f"'google/flan-t5-small', or one of {', '.join(BUNDLED)}"
        )
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ModelError(
            f"the model {name!r} is not a local directory, and huggingface-hub, which would fetch it, is not "
            "installed; install edgefed[train], or give a directory"
        ) from error
    patterns = list(_WANTED_FROM_HUB)
    try:
        cached = huggingface_hub.snapshot_download(name, allow_patterns=patterns, local_files_only=True)
        return check_directory(Path(cached))
    except (OSError, ValueError, ModelError):
        pass  # not in the cache, or only a part of it
    try:
        return check_directory(Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the model {name!r} is neither a directory here nor in the Hugging Face cache, and could not be "
            f"downloaded: {reason}; check the name and the connection, or copy the model here and give its directory"
        ) from error
