"""Files of tensors."""

import torch
from safetensors.torch import load_file

from amradio.tensors import read_tensors, stated_in, write_tensors

ANCESTORS = '[{"name": "a \\"b\\"\\n\\u0001 \u00e9\u4e2d"}]'
STATED = {"step": "4", "distilled_from": ANCESTORS, "z": "\u0001\u007f\n\t", "a": "1", "num_steps": "9", "m": "x" * 300}


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path):
    """A run that was killed and resumed ends with the same file as one that was not (`cmp`)."""
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(3, dtype=torch.bfloat16)}
    files = [tmp_path / f"{number}.safetensors" for number in range(12)]
    for number, file in enumerate(files):
        order = list(STATED.items())
        write_tensors(tensors, file, dict(order[number % 3 :] + order[: number % 3]))
    assert len({file.read_bytes() for file in files}) == 1
    assert stated_in(files[0]) == STATED | {"format": "pt"}
    for read in (read_tensors, load_file):
        found = read(files[0])
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
