"""Tiny models with random weights, and a real text: one byte is one token."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

_TEXT = torch.tensor(list(Path("/usr/share/common-licenses/GPL-3").read_bytes()))
_SEQUENCES, _TOKENS = 2, 64
_generator = threading.Lock()  # torch has one for all threads


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with _generator:
        torch.manual_seed(seed)
        yield


def llama() -> torch.nn.Module:
    with seeded(1):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=256,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=_TOKENS,
            )
        )


def gpt2() -> torch.nn.Module:
    """Its head is tied to its embedding."""
    with seeded(1):
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=256,
                n_embd=64,
                n_layer=3,
                n_head=4,
                n_positions=_TOKENS,
                resid_pdrop=0,
                embd_pdrop=0,
                attn_pdrop=0,
            )
        )


MODELS = {"llama": llama, "gpt2": gpt2}


def batch(step: int, rank: int, ranks: int) -> torch.Tensor:
    tokens = _SEQUENCES * _TOKENS
    first = (step * ranks + rank) * tokens % (len(_TEXT) - tokens)
    return _TEXT[first : first + tokens].view(_SEQUENCES, _TOKENS)


def loss_of(model: torch.nn.Module, step: int, rank: int, ranks: int) -> torch.Tensor:
    tokens = batch(step, rank, ranks)
    return model(input_ids=tokens, labels=tokens).loss


def digest(parameters: Dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(parameters.items()):
        digest.update(name.encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def train_with_torch(make: Any, ranks: int, steps: int, max_norm: float, **options: Any) -> Tuple[List[float], float]:
    """Rank 0's losses and the last norm with torch.optim.AdamW, the ranks' gradients averaged in one process."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    losses = []
    for step in range(steps):
        for rank in reversed(range(ranks)):
            loss = loss_of(model, step, rank, ranks)
            (loss / ranks).backward()
        losses.append(loss.item())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return losses, norm.item()
