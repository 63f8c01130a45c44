"""Without the extra `train` the package loads and runs models; what needs transformers or OpenCLIP says so in one line."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import sys
from importlib.abc import MetaPathFinder


class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "open_clip", "tokenizers"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


sys.meta_path.insert(0, Absent())
import torch
import amradio
from amradio.__main__ import main

model = amradio.load("embedded/quickstart")
print("features", tuple(model.features(torch.rand(1, 3, 64, 64)).summary.shape))
words = ["distill", "starter", "data.train={type: scenes, length: 64}", "--dry-run", "out=never"]
codes = [main(["doctor"]), main(["teachers"]), main(words)]
print("codes", codes)
"""


@pytest.mark.slow
def test_models_run_and_teachers_name_the_extra(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "features (1, " in done.stdout, done.stderr
    assert "codes [0, 0, 2]" in done.stdout
    for teacher in ("clip", "dino", "sam"):
        assert f"error: teachers.{teacher}: " in done.stderr
    assert done.stderr.count("it takes the library 'transformers', which is not installed; pip install 'amradio[train]'") == 3
    assert "Traceback" not in done.stderr
