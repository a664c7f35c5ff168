"""Flex attention on CPU is exact, whatever lies in memory behind the keys: it avoids the kernel that is not."""

import os
import subprocess
import sys

import pytest
import torch
from architectures import Case, token_ids, typical_causal_case
from encodzall_setup import build, encode, labels_of
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# 8 keys are one vector of AVX2 and half a block of torch's product of queries and keys.
PROGRAM = """
import torch
from latentlm.models.block_attention import call_backend
from torch.nn.attention.flex_attention import create_block_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

flex = ALL_ATTENTION_FUNCTIONS["flex_attention"]

def with_nan_behind_keys(module, query, key, *arguments, **options):
    memory = torch.full((2 * key.numel() + 4096,), float("nan"))
    key = memory[: key.numel()].view(key.shape).copy_(key)
    return flex(module, query, key, *arguments, **options)

ALL_ATTENTION_FUNCTIONS.register("flex_attention", with_nan_behind_keys)
query, key, value = torch.randn(3, 2, 2, 8, 16)
expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
module = torch.nn.Module().eval()
for length in (8, 1):  # whole rows, and a step of cached decoding
    start = 8 - length
    mask = create_block_mask(lambda batch, head, q, k: k <= q + start, None, None, length, 8, device="cpu")
    output, _ = call_backend(module, query[:, :, start:], key, value, mask, "flex_attention", scaling=0.25)
    torch.testing.assert_close(output.transpose(1, 2), expected[:, :, start:])
"""


@pytest.mark.slow
def test_no_key_behind_the_last_is_read(tmp_path):
    """Compiles two kernels. That models call none but of such shapes is tested below."""
    # AVX2 alone on every machine, and a cache of its own: code for other vectors must not be found in it.
    environment = {"ATEN_CPU_CAPABILITY": "avx2", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def head_sizes(monkeypatch) -> set[int]:
    """The head sizes that flex attention is called with."""
    sizes: set[int] = set()
    flex = ALL_ATTENTION_FUNCTIONS["flex_attention"]

    def recorded(module, query, key, *arguments, **options):
        sizes.update((query.shape[-1], key.shape[-1]))
        return flex(module, query, key, *arguments, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flex_attention", recorded)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield sizes


@typical_causal_case
def test_causal_models_call_no_kernel_that_is_not_exact(case: Case, head_sizes):
    case.skip_if_excepted("flex_attention")
    case.model("flex_attention")(token_ids(2, 8))
    assert head_sizes and all(size % 8 and size >= 16 for size in head_sizes)


def test_encodzall_calls_no_kernel_that_is_not_exact(head_sizes):
    build(backend="flex_attention")(encode()["input_ids"], labels=labels_of())
    assert head_sizes and all(size % 8 and size >= 16 for size in head_sizes)
