"""Checkpoints as GGUF files: names, shapes and orders of rows, metadata, tokenizer, and the writer.

`open_checkpoint` makes of a model in Hugging Face layout, or of a GGUF file, what a GGUF file is made of; `write_gguf`
writes it. Tensors pass one by one.
"""

from puna.conversion.checkpoint import Checkpoint, open_checkpoint
from puna.conversion.encode import file_type, float_tensors, most_stored
from puna.conversion.gguf_file import EncodedTensor, MetadataValue, Progress, write_gguf
from puna.conversion.merge import merged_checkpoint, merged_tensors, write_merged_directory
from puna.conversion.quantize import Importance, QuantizedTensors, options_for, quantized_tensors
from puna.conversion.tensors import TensorSource

__all__ = [
    "Checkpoint",
    "EncodedTensor",
    "Importance",
    "MetadataValue",
    "Progress",
    "QuantizedTensors",
    "TensorSource",
    "file_type",
    "float_tensors",
    "merged_checkpoint",
    "merged_tensors",
    "most_stored",
    "open_checkpoint",
    "options_for",
    "quantized_tensors",
    "write_gguf",
    "write_merged_directory",
]
