"""Trains a small Llama on a text of your own, with the optimizer's states shared out over processes.

torchrun --nproc-per-node 2 train.py README.md --stage 2
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

import shardplan

parser = argparse.ArgumentParser()
parser.add_argument("text", type=Path)
parser.add_argument("--stage", type=int, default=1, choices=(1, 2, 3))
parser.add_argument("--steps", type=int, default=50)
options = parser.parse_args()

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)

torch.manual_seed(0)  # the same initial values on every rank
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=256, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4)
)
optimizer = shardplan.ZeroAdamW(model, lr=2e-3, stage=options.stage, max_norm=1.0)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.steps)

text = torch.tensor(list(options.text.read_bytes()))
torch.manual_seed(rank)  # each rank reads elsewhere
for step in range(options.steps):
    starts = torch.randint(len(text) - 129, (4,))
    tokens = torch.stack([text[start : start + 128] for start in starts])
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
    if rank == 0 and step % 10 == 9:
        print(f"step {step + 1}: loss {loss.item():.3f}, norm {optimizer.last_step.norm:.2f}")

parameters = optimizer.full_parameters()  # on every rank, whatever the stage
if rank == 0:
    size = f"{optimizer.arena_bytes / 1e6:.1f} MB"
    print(f"{sum(each.numel() for each in parameters.values()):,} parameters, {size} held by each of {ranks} ranks")
dist.destroy_process_group()
