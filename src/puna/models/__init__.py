"""Finding, fetching and removing model files by name.

A model is named by a `.gguf` file (any size of split set, by its first file), a directory in Hugging Face layout,
`org/name` or `org/name:TAG` on the hub, or `smollm2`, the default. Nothing here opens a weight file: it answers with
paths.
"""

from puna.models.files import ModelFiles
from puna.models.names import InstalledModel, RemovedModel, find_model, list_models, pull_model, remove_model
from puna.models.packaged import DEFAULT_MODEL, cache_directory

__all__ = [
    "DEFAULT_MODEL",
    "InstalledModel",
    "ModelFiles",
    "RemovedModel",
    "cache_directory",
    "find_model",
    "list_models",
    "pull_model",
    "remove_model",
]
