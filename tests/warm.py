"""What is done once in the server that processes are forked from, beyond imports."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("clip")  # compiles a thousand patterns at its first call
