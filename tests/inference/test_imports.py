"""What may be imported without torch: the server's own code builds on these."""

import subprocess
import sys

import pytest

LIGHT = ("requests", "sampling_params", "errors")


@pytest.mark.parametrize("module", LIGHT)
def test_the_contract_is_importable_without_torch(module):
    code = f"import sys; sys.modules.update(torch=None, transformers=None); import idefics_chat.inference.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
