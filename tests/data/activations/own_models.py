"""Models that transformers has no class for: Kimi-VL, Stable Diffusion 3's transformer, DiT, flows.

    build(config, setup, dtype)   the model and its batch, on the device that is set; call(model, batch) is the loss

Kimi-VL is put together from transformers' DeepSeek-V3 and from MoonViT and its projector, written here with the operations of
the published class (moonshotai/Kimi-VL-A3B-Instruct, modeling_kimi_vl.py). The transformer of Stable Diffusion 3 is diffusers' own.
DiT is in own_dit.py.
Flows are what docs/flow-models.md describes; torchdiffeq integrates the continuous ones.
"""
import math

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from own_dit import dit

# --- Kimi-VL --------------------------------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, side = config["hidden_size"], config["patch_size"]
        self.proj = nn.Conv2d(3, width, side, side)
        self.pos_emb = nn.Module()
        self.pos_emb.weight = nn.Parameter(torch.empty(config["init_pos_emb_height"], config["init_pos_emb_width"], width))

    def positions(self, size):
        table = self.pos_emb.weight
        if list(size) == list(table.shape[:2]):
            return table.flatten(end_dim=1)
        image = F.interpolate(table.permute(2, 0, 1).unsqueeze(0), size=size, mode="bicubic")
        return image.squeeze(0).permute(1, 2, 0).flatten(end_dim=1)

    def forward(self, pixels, sizes):
        x = self.proj(pixels).view(pixels.size(0), -1)
        return x + torch.cat([self.positions(size) for size in sizes])


class TowerBlock(nn.Module):
    def __init__(self, config, attention):
        super().__init__()
        width = config["hidden_size"]
        self.heads, self.eager = config["num_attention_heads"], attention == "eager"
        self.norm0, self.norm1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.fc0, self.mlp.fc1 = nn.Linear(width, config["intermediate_size"]), nn.Linear(config["intermediate_size"], width)
        self.wqkv, self.wo = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def rotated(self, q, k, rotations):
        rotations = rotations.unsqueeze(-2)
        wide_q = torch.view_as_complex(q.float().view(*q.shape[:-1], -1, 2))
        wide_k = torch.view_as_complex(k.float().view(*k.shape[:-1], -1, 2))
        rotated_q = torch.view_as_real(wide_q * rotations).flatten(-2)
        rotated_k = torch.view_as_real(wide_k * rotations).flatten(-2)
        return rotated_q.type_as(q), rotated_k.type_as(k)

    def attention(self, x, sizes, rotations):
        qkv = self.wqkv(x)
        q, k, v = torch.unbind(qkv.view(x.size(0), 3, self.heads, -1), dim=-3)
        q, k = self.rotated(q, k, rotations)
        mask = torch.zeros(1, x.size(0), x.size(0), dtype=torch.bool, device=x.device)
        start = 0
        for height, width in sizes:
            end = start + height * width
            mask[..., start:end, start:end] = True
            start = end
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        if self.eager:
            weights = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            weights += mask
            mixed = torch.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.0)
        return self.wo(mixed.transpose(0, 1).reshape(x.size(0), -1))

    def forward(self, x, sizes, rotations):
        residual = x
        x = self.norm0(x)
        x = residual + self.attention(x, sizes, rotations)
        residual = x
        x = self.mlp.fc1(F.gelu(self.mlp.fc0(self.norm1(x)), approximate="tanh"))
        return residual + x


class MoonVit(nn.Module):
    def __init__(self, config, attention):
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList([TowerBlock(config, attention) for _ in range(config["num_hidden_layers"])])
        self.encoder.final_layernorm = nn.LayerNorm(config["hidden_size"])
        size = config["hidden_size"] // config["num_attention_heads"]
        self.register_buffer("table", torch.zeros(512, 512, size // 2, dtype=torch.complex64), persistent=False)

    def forward(self, pixels, sizes):
        x = self.patch_embed(pixels, sizes)
        features = self.table.shape[-1]
        rotations = torch.cat([self.table[:height, :width].reshape(-1, features) for height, width in sizes], dim=0)
        for block in self.encoder.blocks:
            x = block(x, sizes, rotations)
        return self.merged(self.encoder.final_layernorm(x), sizes)

    def merged(self, x, sizes):
        outputs, start = [], 0
        for height, width in sizes:
            image = x[start:start + height * width].view(height // 2, 2, width // 2, 2, x.size(-1))
            outputs.append(image.permute(0, 2, 1, 3, 4).contiguous().view(height * width // 4, 4, -1))
            start += height * width
        return outputs


class Projector(nn.Module):
    def __init__(self, seen, width):
        super().__init__()
        self.pre_norm = nn.LayerNorm(seen)
        self.linear_1, self.linear_2 = nn.Linear(4 * seen, 4 * seen), nn.Linear(4 * seen, width)

    def forward(self, images):
        x = self.pre_norm(torch.cat(images, dim=0))
        return self.linear_2(F.gelu(self.linear_1(x.view(-1, self.linear_1.in_features))))


class KimiVL(nn.Module):
    def __init__(self, config, setup, dtype):
        super().__init__()
        text = {key: value for key, value in config["text_config"].items() if key != "model_type"}
        seen = config["vision_config"]["hidden_size"]
        self.vision_tower = MoonVit(config["vision_config"], setup["attention"])
        self.multi_modal_projector = Projector(seen, text["hidden_size"])
        loaded = transformers.AutoConfig.for_model("deepseek_v3", **text)
        self.language_model = transformers.DeepseekV3ForCausalLM._from_config(
            loaded, dtype=dtype, attn_implementation=setup["attention"])

    def forward(self, input_ids, labels, pixel_values, sizes):
        words = self.language_model.get_input_embeddings()(input_ids)
        images = self.vision_tower(pixel_values, sizes)
        images = self.multi_modal_projector(images)
        width = words.shape[-1]
        words = words.reshape(-1, width)
        mask = input_ids.flatten() == 7
        mask.selected = images.shape[0]
        words[mask] = images
        words = words.reshape(*input_ids.shape, width)
        return self.language_model(inputs_embeds=words, labels=labels).loss


def kimi_vl(config, setup, dtype):
    model = KimiVL(config, setup, dtype)
    model.vision_tower.to(dtype)
    model.vision_tower.table = torch.zeros_like(model.vision_tower.table, dtype=torch.complex64)
    model.multi_modal_projector.to(dtype)
    vision, count = config["vision_config"], setup["batch"] * setup.get("images", 1)
    side = vision["patch_size"]
    height, width = setup.get("image", [vision["init_pos_emb_height"] * side, vision["init_pos_emb_width"] * side])
    sizes = [(height // side, width // side)] * count
    patches = count * sizes[0][0] * sizes[0][1]
    ids = torch.zeros(setup["batch"], setup["sequence"], dtype=torch.long)
    batch = {"input_ids": ids, "labels": torch.zeros_like(ids),
             "pixel_values": torch.zeros(patches, 3, side, side, dtype=dtype)}
    return model, batch, lambda: model(**batch, sizes=sizes)


# --- Stable Diffusion 3 -----------------------------------------------------------------------------------------------------


def sd3(config, setup, dtype):
    import diffusers
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    model = diffusers.SD3Transformer2DModel(**values).to(dtype)
    if setup.get("checkpoint"):
        model.enable_gradient_checkpointing()
    count, channels = setup["batch"], config["in_channels"]
    height, width = (size // 8 for size in setup["image"])
    tokens = setup["sequence"] if setup["sequence"] is not None else 77 + 256
    batch = {"hidden_states": torch.zeros(count, channels, height, width, dtype=dtype),
             "encoder_hidden_states": torch.zeros(count, tokens, config["joint_attention_dim"], dtype=dtype),
             "pooled_projections": torch.zeros(count, config["pooled_projection_dim"], dtype=dtype),
             "timestep": torch.zeros(count)}
    target = torch.zeros_like(batch["hidden_states"])

    def step():
        prediction = model(**batch, return_dict=False)[0]
        return ((prediction.float() - target.float()) ** 2).sum()
    return model, {**batch, "target": target}, step


def without_class(config):
    return {key: value for key, value in config.items() if key not in ("_class_name", "architectures", "model_type")}


class Sd3Pipeline(nn.Module):
    """A member for each of the pipeline's; the transformer alone is trained."""

    def __init__(self, config, setup, dtype):
        import diffusers
        super().__init__()
        self.transformer = diffusers.SD3Transformer2DModel(**without_class(config["transformer"])).to(dtype)
        options = {"dtype": dtype, "attn_implementation": setup["attention"]}
        for name in ("text_encoder", "text_encoder_2"):
            if name in config:
                member = transformers.CLIPTextConfig(**without_class(config[name]))
                setattr(self, name, transformers.CLIPTextModelWithProjection._from_config(member, **options))
        if "text_encoder_3" in config:
            member = transformers.T5Config(**without_class(config["text_encoder_3"]))
            self.text_encoder_3 = transformers.T5EncoderModel._from_config(member, dtype=dtype)
        if "vae" in config:
            self.vae = diffusers.AutoencoderKL(**without_class(config["vae"])).to(dtype)
        for name, member in self.named_children():
            member.requires_grad_(name == "transformer")

    def train(self, mode=True):
        for name, member in self.named_children():
            member.train(mode and name == "transformer")
        return self

    def clip(self, encoder, ids):
        states = encoder(ids, output_hidden_states=True)
        pooled, states = states[0], states.hidden_states[-2]
        return states.repeat(1, 1, 1), pooled

    def t5(self, ids, width, dtype):
        if not hasattr(self, "text_encoder_3"):
            return torch.zeros(*ids.shape, width, dtype=dtype)
        return self.text_encoder_3(ids)[0].repeat(1, 1, 1)

    @torch.no_grad()
    def encode_prompt(self, clip_ids, t5_ids, width, dtype):
        parts, ends = zip(*(self.clip(encoder, clip_ids) for encoder in (self.text_encoder, self.text_encoder_2)))
        states, pooled = torch.cat(parts, dim=-1), torch.cat(ends, dim=-1)
        words = self.t5(t5_ids, width, dtype)
        states = F.pad(states, (0, words.shape[-1] - states.shape[-1]))
        return torch.cat([states, words], dim=-2), pooled


def sd3_pipeline(config, setup, dtype):
    model = Sd3Pipeline(config, setup, dtype)
    if setup.get("checkpoint"):
        model.transformer.enable_gradient_checkpointing()
    own, count = config["transformer"], setup["batch"]
    tokens = setup["sequence"] - 77 if setup["sequence"] is not None else 256
    height, width = (size // 8 for size in setup["image"])
    batch = {"sigma": torch.zeros(count, 1, 1, 1, dtype=dtype), "timestep": torch.zeros(count)}
    if "text_encoder" in config:
        batch |= {"clip": torch.zeros(count, 77, dtype=torch.long), "t5": torch.zeros(count, tokens, dtype=torch.long)}
    else:
        batch |= {"states": torch.zeros(count, 77 + tokens, own["joint_attention_dim"], dtype=dtype),
                  "pooled": torch.zeros(count, own["pooled_projection_dim"], dtype=dtype)}
    if "vae" in config:
        batch["pixels"] = torch.zeros(count, 3, *setup["image"], dtype=dtype)
    else:
        batch["latents"] = torch.zeros(count, own["in_channels"], height, width, dtype=dtype)

    def texts():
        if "states" in batch:
            return batch["states"], batch["pooled"]
        return model.encode_prompt(batch["clip"], batch["t5"], own["joint_attention_dim"], dtype)

    def latents():
        if "latents" in batch:
            return batch["latents"]
        return (model.vae.encode(batch["pixels"]).latent_dist.sample() - 0.06) * 1.5

    def step():
        states, pooled = texts()
        clean = latents()
        noise = torch.randn_like(clean)
        noisy = (1.0 - batch["sigma"]) * clean + batch["sigma"] * noise
        prediction = model.transformer(hidden_states=noisy, encoder_hidden_states=states, pooled_projections=pooled,
                                       timestep=batch["timestep"], return_dict=False)[0]
        target = noise - clean
        return ((prediction.float() - target.float()) ** 2).sum()
    return model, batch, step


# --- FLUX.2 -----------------------------------------------------------------------------------------------------------------


def flux2(config, setup, dtype):
    import diffusers
    model = diffusers.Flux2Transformer2DModel(**without_class(config)).to(dtype)
    if setup.get("checkpoint"):
        model.enable_gradient_checkpointing()
    count = setup["batch"]
    height, width = (size // 16 for size in setup["image"])
    tokens = setup["sequence"] if setup["sequence"] is not None else 512
    batch = {"hidden_states": torch.zeros(count, height * width, config["in_channels"], dtype=dtype),
             "encoder_hidden_states": torch.zeros(count, tokens, config["joint_attention_dim"], dtype=dtype),
             "timestep": torch.zeros(count), "img_ids": torch.zeros(count, height * width, 4, dtype=torch.long),
             "txt_ids": torch.zeros(count, tokens, 4, dtype=torch.long)}
    if config.get("guidance_embeds", True):
        batch["guidance"] = torch.zeros(count)
    target = torch.zeros_like(batch["hidden_states"])

    def step():
        prediction = model(**batch, return_dict=False)[0]
        return ((prediction.float() - target.float()) ** 2).sum()
    return model, {**batch, "target": target}, step


# --- Flows ------------------------------------------------------------------------------------------------------------------


class ZeroConvolution(nn.Conv2d):
    def __init__(self, channels, output):
        super().__init__(channels, output, 3, padding=1)
        self.log_scale = nn.Parameter(torch.empty(output, 1, 1))

    def forward(self, x):
        return super().forward(x) * self.log_scale.exp()


class Step(nn.Module):
    def __init__(self, config, channels, prior):
        super().__init__()
        self.affine = config.get("coupling", "affine") == "affine"
        hidden, half = config["hidden_channels"], channels // 2
        if config.get("actnorm", True):
            self.log_scale, self.bias = nn.Parameter(torch.empty(channels, 1, 1)), nn.Parameter(torch.empty(channels, 1, 1))
        if config.get("permutation", "convolution") == "convolution":
            self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1))
        self.net = nn.Sequential(nn.Conv2d(half, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, hidden, 1), nn.ReLU(),
                                 ZeroConvolution(hidden, channels if self.affine else half))
        self.prior = ZeroConvolution(half, channels) if prior else None

    def forward(self, z):
        terms = []
        if hasattr(self, "log_scale"):
            z = z * self.log_scale.exp() + self.bias
            terms.append(self.log_scale.sum() * (z.shape[2] * z.shape[3]))
        if hasattr(self, "weight"):
            z = F.conv2d(z, self.weight)
            terms.append(torch.linalg.slogdet(self.weight.float()[:, :, 0, 0])[1] * (z.shape[2] * z.shape[3]))
        else:
            z = z.flip(1)
        kept, changed = z.chunk(2, 1)
        said = self.net(kept)
        if self.affine:
            summand, factor = said.chunk(2, 1)
            factor = factor.sigmoid()
            changed = (changed + summand) * factor
            terms.append(factor.log().sum((1, 2, 3)))
        else:
            changed = changed + said
        return torch.cat([kept, changed], 1), terms

    def inverse(self, z):
        kept, changed = z.chunk(2, 1)
        said = self.net(kept)
        if self.affine:
            summand, factor = said.chunk(2, 1)
            changed = changed / factor.sigmoid() - summand
        else:
            changed = changed - said
        z = torch.cat([kept, changed], 1)
        del kept, changed, said
        if hasattr(self, "weight"):
            z = F.conv2d(z, self.weight.float()[:, :, 0, 0].inverse().to(z.dtype)[:, :, None, None])
        else:
            z = z.flip(1)
        return (z - self.bias) * (-self.log_scale).exp() if hasattr(self, "log_scale") else z


class Inverted(torch.autograd.Function):
    """A step that keeps nothing: `last` has what the last step in a row put out."""

    @staticmethod
    def forward(ctx, z, step, last, *parameters):
        ctx.step, ctx.last = step, last
        output, terms = step(z.detach())
        last[:] = [output]
        ctx.count = len(terms)
        return output, sum(term.sum() for term in terms) if terms else output.new_zeros(())

    @staticmethod
    def backward(ctx, gradient, of_terms):
        with torch.no_grad():
            ctx.last[:] = [ctx.step.inverse(ctx.last[0])]
        z = ctx.last[0].detach().requires_grad_()
        with torch.enable_grad():
            output, terms = ctx.step(z)
            parameters = [p for name, p in ctx.step.named_parameters() if not name.startswith("prior")]
            gradients = torch.autograd.grad([output, *terms], [z, *parameters],
                                            [gradient, *(of_terms.expand(term.shape).to(term.dtype) for term in terms)])
        return gradients[0], None, None, *gradients[1:]


def log_density(z, said):
    if said is None:
        return (z ** 2 * -0.5).sum((1, 2, 3))
    mean, log_deviation = said.chunk(2, 1)
    return ((2 * log_deviation + (z - mean) ** 2 * (-2 * log_deviation).exp()) * -0.5).sum((1, 2, 3))


class Glow(nn.Module):
    def __init__(self, config, inverted):
        super().__init__()
        self.inverted, self.learned = inverted, config.get("learned_prior", True)
        steps, levels, channels = config["steps_per_level"], config["levels"], 4 * config.get("channels", 3)
        self.flows, self.channels = nn.ModuleList(), []
        for level in range(levels):
            for i in range(steps):
                prior = self.learned and level + 1 < levels and i + 1 == steps
                self.flows.append(Step(config, channels, prior))
                self.channels.append(channels)
            channels *= 2 if level + 1 < levels else 1
        self.prior = ZeroConvolution(channels, 2 * channels) if self.learned else None

    def split(self, z, prior, terms):
        kept, leaving = z.chunk(2, 1)
        terms.append(log_density(leaving, prior(kept) if prior is not None else None))
        return kept

    def forward(self, z):
        terms, last = [], []
        for step, channels in zip(self.flows, self.channels):
            if channels == 2 * z.shape[1]:
                z = self.split(z, None, terms)
            if channels != z.shape[1]:
                z, last = F.pixel_unshuffle(z, 2), []
            if self.inverted:
                own = [p for name, p in step.named_parameters() if not name.startswith("prior")]
                z, term = Inverted.apply(z, step, last, *own)
                terms.append(term)
            else:
                z, more = step(z)
                terms += more
            if step.prior is not None:
                z = self.split(z, step.prior, terms)
        terms.append(log_density(z, self.prior(torch.zeros_like(z)) if self.learned else None))
        return sum(term.sum() for term in terms)


def glow(config, setup, dtype):
    model = Glow(config, setup.get("recompute") == "invert").to(dtype)
    side = config["image_size"]
    batch = {"image": torch.zeros(setup["batch"], config.get("channels", 3), side, side, dtype=dtype)}
    return model, batch, lambda: model(batch["image"])


class TimedLinear(nn.Module):
    def __init__(self, conditioning, width, output):
        super().__init__()
        self.conditioning = conditioning
        self.layer = nn.Linear(width + (conditioning == "concat"), output)
        if conditioning == "concatsquash":
            self.gate, self.shift = nn.Linear(1, output), nn.Linear(1, output, bias=False)

    def forward(self, t, x):
        if self.conditioning == "concat":
            return self.layer(torch.cat([torch.ones_like(x[:, :1]) * t, x], 1))
        y = self.layer(x)
        if self.conditioning == "concatsquash":
            t = t.view(1, 1)
            y = y * torch.sigmoid(self.gate(t)) + self.shift(t)
        return y


class Field(nn.Module):
    """The change of a point and of the logarithm of its density."""

    def __init__(self, config):
        super().__init__()
        widths = [config["data_dims"], *config["hidden_dims"], config["data_dims"]]
        conditioning = config.get("conditioning", "concat")
        self.net = nn.ModuleList(TimedLinear(conditioning, *pair) for pair in zip(widths, widths[1:]))
        self.activation = getattr(F, config.get("activation", "softplus"))
        self.noise = None

    def network(self, t, x):
        for layer in self.net[:-1]:
            x = self.activation(layer(t, x))
        return self.net[-1](t, x)

    def forward(self, t, state):
        z = state[0]
        with torch.enable_grad():
            change = self.network(t, z.requires_grad_())
            product = torch.autograd.grad(change, z, self.noise, create_graph=True)[0]
            divergence = (product * self.noise).sum(1)
        return change, -divergence


class Cnf(nn.Module):
    differentiates = True  # in its forward too

    def __init__(self, config, adjoint):
        super().__init__()
        import torchdiffeq
        self.flows = nn.ModuleList(Field(config) for _ in range(config.get("blocks", 1)))
        self.odeint = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
        self.solver, self.steps = config.get("solver", "rk4"), config.get("time_steps", 20)

    def solve(self, flow, state):
        times = torch.arange(2.0)
        return [part[-1] for part in self.odeint(flow, state, times, method=self.solver,
                                                 options={"step_size": 1 / self.steps})]

    def forward(self, x):
        z, change = x, x.new_zeros(x.shape[0])
        noises = torch.randn(len(self.flows), *x.shape, dtype=x.dtype, device=x.device)
        for flow, noise in zip(self.flows, noises):
            flow.noise = noise
            z, change = self.solve(flow, (z, change))
        return ((z ** 2 * -0.5).sum(1) - change).sum()


def cnf(config, setup, dtype):
    model = Cnf(config, setup.get("recompute") == "adjoint").to(dtype)
    batch = {"points": torch.zeros(setup["batch"], config["data_dims"], dtype=dtype)}
    return model, batch, lambda: model(batch["points"])


BUILDERS = {"kimi_vl": kimi_vl, "DiT": dit, "SD3Transformer2DModel": sd3, "Flux2Transformer2DModel": flux2,
            "StableDiffusion3Pipeline": sd3_pipeline, "glow": glow, "cnf": cnf}


def builder(config):
    return BUILDERS.get(config.get("model_type", config.get("_class_name")))
