"""DiT and the loss of its training, with the operations of the published class and of timm's layers (facebookresearch/DiT, models.py and
diffusion/gaussian_diffusion.py). Tables of the noise schedule are zeros, of their lengths and dtypes.

    dit(config, setup, dtype)   the model, its batch, and the forward of one step
"""
import contextlib
import math

import torch
import torch.nn.functional as F
from torch import nn


def modulated(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DitAttention(nn.Module):
    def __init__(self, width, heads, fused):
        super().__init__()
        self.heads, self.fused, self.scale = heads, fused, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            q = q * self.scale
            weights = q @ k.transpose(-2, -1)
            weights = weights.softmax(dim=-1)
            x = weights @ v
        x = x.transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(x)


class DitMlp(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width)

    def forward(self, x):
        x = self.fc1(x)
        x = self.act(x)
        x = self.fc2(x)
        return x


class DitBlock(nn.Module):
    def __init__(self, width, heads, inner, fused):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attn, self.mlp = DitAttention(width, heads, fused), DitMlp(width, inner)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulated(self.norm1(x), shift1, scale1))
        x = x + gate2.unsqueeze(1) * self.mlp(modulated(self.norm2(x), shift2, scale2))
        return x


class DitFinal(nn.Module):
    def __init__(self, width, output):
        super().__init__()
        self.norm_final, self.linear = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, output)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        x = modulated(self.norm_final(x), shift, scale)
        return self.linear(x)


class Dit(nn.Module):
    """In 16 bits it casts its latents and the sines of a time, as forks do that train it so; the published class is fp32."""

    def __init__(self, config, fused, checkpointed):
        super().__init__()
        width, self.patch, channels = config["hidden_size"], config["patch_size"], config["in_channels"]
        self.output = channels * (2 if config["learn_sigma"] else 1)
        self.classes, self.dropped, self.checkpointed = config["num_classes"], config["class_dropout_prob"], checkpointed
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(channels, width, self.patch, self.patch)
        self.t_embedder, self.y_embedder = nn.Module(), nn.Module()
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder.embedding_table = nn.Embedding(self.classes + (self.dropped > 0), width)
        self.pos_embed = nn.Parameter(torch.empty(1, (config["input_size"] // self.patch) ** 2, width), requires_grad=False)
        inner = int(width * config.get("mlp_ratio", 4.0))
        self.blocks = nn.ModuleList(DitBlock(width, config["num_heads"], inner, fused) for _ in range(config["depth"]))
        self.final_layer = DitFinal(width, self.patch ** 2 * self.output)

    def time(self, t):
        half = 128
        frequencies = torch.exp(-math.log(10000) * torch.arange(0, half, dtype=torch.float32, device="cpu") / half).to(t.device)
        angles = t[:, None].float() * frequencies[None]
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return waves.to(self.pos_embed.dtype)

    def label(self, y):
        if self.dropped > 0:
            left_out = torch.rand(y.shape[0], device=y.device) < self.dropped
            y = torch.where(left_out, self.classes, y)
        return self.y_embedder.embedding_table(y)

    def image(self, x):
        side, p = int(x.shape[1] ** 0.5), self.patch
        x = x.reshape(x.shape[0], side, side, p, p, self.output)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], self.output, side * p, side * p)

    def forward(self, x, t, y):
        x = self.x_embedder.proj(x.to(self.pos_embed.dtype)).flatten(2).transpose(1, 2) + self.pos_embed
        t = self.t_embedder.mlp(self.time(t))
        y = self.label(y)
        c = t + y
        for block in self.blocks:
            if self.checkpointed:
                x = torch.utils.checkpoint.checkpoint(block, x, c, use_reentrant=False)
            else:
                x = block(x, c)
        x = self.final_layer(x, c)
        return self.image(x)


class Diffusion:
    """training_losses of a model that predicts the noise and, between two bounds, its variance."""

    steps = 1000

    def of(self, t, shape):
        values = torch.zeros(self.steps, dtype=torch.float64, device="cpu").to(t.device)[t].float()
        return values[:, None, None, None] + torch.zeros(shape, device=t.device)

    def mean(self, x):
        return x.mean(dim=[1, 2, 3])

    def posterior(self, start, noisy, t):
        mean = self.of(t, noisy.shape) * start + self.of(t, noisy.shape) * noisy
        return mean, self.of(t, noisy.shape), self.of(t, noisy.shape)

    def said(self, output, noisy, t):
        noise, variance = torch.split(output, noisy.shape[1], dim=1)
        least, most = self.of(t, noisy.shape), self.of(t, noisy.shape)
        part = (variance + 1) / 2
        logarithm = part * most + (1 - part) * least
        variance = torch.exp(logarithm)
        start = self.of(t, noisy.shape) * noisy - self.of(t, noisy.shape) * noise
        mean, _, _ = self.posterior(start, noisy, t)
        return {"mean": mean, "variance": variance, "logarithm": logarithm, "start": start}

    def divergence(self, mean1, log1, mean2, log2):
        return 0.5 * (-1.0 + log2 - log1 + torch.exp(log1 - log2) + ((mean1 - mean2) ** 2) * torch.exp(-log2))

    def below(self, x):
        return 0.5 * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3))))

    def likelihood(self, x, means, log_scales):
        centred = x - means
        inverse = torch.exp(-log_scales)
        upper = inverse * (centred + 1.0 / 255.0)
        below_upper = self.below(upper)
        lower = inverse * (centred - 1.0 / 255.0)
        below_lower = self.below(lower)
        log_upper = torch.log(below_upper.clamp(min=1e-12))
        log_above = torch.log((1.0 - below_lower).clamp(min=1e-12))
        between = below_upper - below_lower
        return torch.where(x < -0.999, log_upper,
                           torch.where(x > 0.999, log_above, torch.log(between.clamp(min=1e-12))))

    def bound(self, output, start, noisy, t):
        mean, _, logarithm = self.posterior(start, noisy, t)
        said = self.said(output, noisy, t)
        divergence = self.divergence(mean, logarithm, said["mean"], said["logarithm"])
        divergence = self.mean(divergence) / math.log(2.0)
        first = -self.likelihood(start, said["mean"], 0.5 * said["logarithm"])
        first = self.mean(first) / math.log(2.0)
        return torch.where(t == 0, first, divergence)

    def losses(self, model, start, t, y, learned):
        noise = torch.randn_like(start)
        noisy = self.of(t, start.shape) * start + self.of(t, start.shape) * noise
        terms = {}
        output = model(noisy, torch.zeros(self.steps, dtype=t.dtype, device=t.device)[t], y)
        if learned:
            output, variance = torch.split(output, start.shape[1], dim=1)
            frozen = torch.cat([output.detach(), variance], dim=1)
            terms["bound"] = self.bound(frozen, start, noisy, t)
        target = [self.posterior(start, noisy, t)[0], noise][1]
        terms["square"] = self.mean((target - output) ** 2)
        terms["loss"] = terms["square"] + terms["bound"] if learned else terms["square"]
        return terms


def dit(config, setup, dtype):
    model = Dit(config, setup["attention"] == "sdpa", setup.get("checkpoint", False)).to(dtype)
    model.pos_embed.requires_grad_(False)
    count, side = setup["batch"], config["input_size"]
    batch = {"x": torch.zeros(count, config["in_channels"], side, side), "t": torch.zeros(count, dtype=torch.long),
             "y": torch.zeros(count, dtype=torch.long)}

    def step():
        half = setup["dtype"] == "amp-bf16"
        with torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext():
            terms = Diffusion().losses(model, batch["x"], batch["t"], batch["y"], config["learn_sigma"])
            return terms["loss"].mean()
    return model, batch, step
