#!/usr/bin/env python3
"""Writes FAMILY.json: what PyTorch keeps for backward, and the peak of a step, for small models of each family.

    python3 tests/data/activations/make_goldens.py [--again] [FAMILY ...]     needs torch, transformers, peft and g++, no GPU

Cases that a file has already, measured with the installed versions, stay; --again measures them too.

The tests read the files alone. README.md in this folder describes their format, cases.py holds the models, torch_step.py
measures. The versions that were used stand in each file.
"""
import contextlib
import fnmatch
import json
import os
import sys
import types
import unittest.mock
import warnings

import peft
import torch
import transformers

import cases
import own_models
import torch_step

FOLDER = os.path.dirname(os.path.abspath(__file__))
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "amp-bf16": torch.float32}


def apply_by_replacing(module, function, recurse=True):
    """torch.nn.Module._apply, which would swap fake parameters and cannot where `function` changes nothing."""
    for child in module.children():
        apply_by_replacing(child, function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            changed = function(parameter.detach())
            module._parameters[name] = torch.nn.Parameter(changed, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def freeze(model, setup):
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in setup.get("freeze", [])):
            parameter.requires_grad_(False)


def with_adapters(model, lora):
    options = {key: value for key, value in lora.items() if key != "autocast_adapter_dtype"}
    with torch.device("cuda"), unittest.mock.patch.object(torch.nn.Module, "_apply", apply_by_replacing):
        return peft.get_peft_model(model, peft.LoraConfig(**options),
                                   autocast_adapter_dtype=lora.get("autocast_adapter_dtype", True))


def build(config, setup):
    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    loaded = transformers.AutoConfig.for_model(config["model_type"], **values)
    if "use_cache" in setup:
        loaded.get_text_config(decoder=True).use_cache = setup["use_cache"]
    with torch.device("cuda"), transformers.modeling_utils.no_init_weights():
        model = getattr(transformers, config["architectures"][0])._from_config(
            loaded, dtype=DTYPES[setup["dtype"]], attn_implementation=setup["attention"])
    model.tie_weights()  # as from_pretrained does; _from_config alone leaves a head of its own
    if config["model_type"] == "llama4":  # a table that is no buffer stays where from_pretrained makes it
        table = model.vision_model.rotary_embedding
        table.freqs_ci = table.freqs_ci.cpu()
    if config["model_type"] in ("qwen2_vl", "qwen2_5_vl") and setup.get("images", 1):
        know_grid(model, config, setup)
    freeze(model, setup)
    if "lora" in setup:
        model = with_adapters(model, setup["lora"])
    if setup.get("checkpoint"):
        if "lora" in setup:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def experts_of(config):
    config = config.get("text_config", config.get("ffn_config", config))
    return next((config[key] for key in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
                 if key in config), 0)


def integers(*shape):
    return torch.zeros(shape, dtype=torch.long, device="cuda")


def reads_both(config):
    return config["architectures"][0] in ("CLIPModel", "SiglipModel")


def patches_of(vision):
    return (vision["image_size"] // vision["patch_size"]) ** 2


class Known:
    """Numbers that follow from the batch, in the place of a tensor whose data a fake one lacks: what cu_seqlens or a grid of patches
    is asked for."""

    def __init__(self, numbers):
        self.numbers = numbers

    def same(self, *arguments):
        return self

    __getitem__ = __sub__ = __mul__ = prod = same

    def __floordiv__(self, divisor):
        return Known([number // divisor for number in self.numbers])

    def tolist(self):
        return self.numbers


def qwen_grid(config, setup):
    vision, images = config["vision_config"], setup["batch"] * setup.get("images", 1)
    height, width = (pixels // vision["patch_size"] for pixels in setup["image"])
    return images, height, width


def know_grid(model, config, setup):
    """Qwen-VL's towers ask a grid of patches for numbers: the class's own code says which, on real tensors, before the step."""
    images, height, width = qwen_grid(config, setup)
    visual, patches = model.model.visual, height * width
    merged = visual.spatial_merge_size**2
    lengths = {True: [patches] * images}
    if hasattr(visual, "get_window_index"):
        with torch._subclasses.fake_tensor.unset_fake_temporarily():
            ends = visual.get_window_index(torch.tensor([[1, height, width]] * images))[1]
        lengths[False] = [end - start for start, end in zip(ends, ends[1:]) if end > start]
        visual.get_window_index = lambda grid: (torch.zeros(images * patches // merged, dtype=torch.long), ends)
    for number, block in enumerate(visual.blocks):
        sees_all = number in getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
        block.register_forward_pre_hook(
            lambda block, args, kwargs, known=lengths[sees_all]: (args, {**kwargs, "cu_seqlens": Known(known)}), with_kwargs=True)
    features = visual.blocks[0].attn.head_dim // 2
    visual.rot_pos_emb = lambda grid: torch.empty(images * patches, features, device="cuda")


TOKENS_OF_AN_IMAGE = {
    "gemma3": lambda config: config["mm_tokens_per_image"],
    "llava": lambda config: patches_of(config["vision_config"]) + (config.get("vision_feature_select_strategy") == "full"),
    "llama4": lambda config: round(patches_of(config["vision_config"]) * config["vision_config"].get("pixel_shuffle_ratio", 0.5) ** 2),
}


def has_no_head(architecture):
    return architecture.endswith("Model") and not architecture.endswith("LMHeadModel")


def batch_of(config, setup):
    count, length, dtype = setup["batch"], setup["sequence"], DTYPES[setup["dtype"]]
    if "ulysses" in setup:  # this rank's part, as UlyssesSPDataLoaderAdapter hands it out
        length //= setup["ulysses"]
    if length is None:
        size = config.get("vision_config", config)["image_size"]
        batch = {"pixel_values": torch.zeros(count, 3, size, size, dtype=dtype, device="cuda")}
    elif config["model_type"] == "whisper":
        frames = 2 * config["max_source_positions"]
        batch = {"input_features": torch.zeros(count, config["num_mel_bins"], frames, dtype=dtype, device="cuda")}
    else:
        batch = {"input_ids": integers(count, length)}
    if reads_both(config):
        size = config["vision_config"]["image_size"]
        batch |= {"pixel_values": torch.zeros(count, 3, size, size, dtype=dtype, device="cuda"), "return_loss": True}
    if config["model_type"] in TOKENS_OF_AN_IMAGE:
        size, images = config["vision_config"]["image_size"], count * setup.get("images", 1)
        if images:
            batch["pixel_values"] = torch.zeros(images, 3, size, size, dtype=dtype, device="cuda")
        batch["input_ids"].of_images = images * TOKENS_OF_AN_IMAGE[config["model_type"]](config)
    if config["model_type"] in ("qwen2_vl", "qwen2_5_vl"):
        batch["position_ids"] = integers(3, count, length)
        if setup.get("images", 1):
            (images, height, width), vision = qwen_grid(config, setup), config["vision_config"]
            numbers = 3 * vision.get("temporal_patch_size", 2) * vision["patch_size"] ** 2
            batch["pixel_values"] = torch.zeros(images * height * width, numbers, dtype=dtype, device="cuda")
            batch["image_grid_thw"] = Known([height * width] * images)
            batch["input_ids"].of_images = images * height * width // vision.get("spatial_merge_size", 2) ** 2
    if config["model_type"] == "gemma3":
        batch["token_type_ids"] = integers(count, length)
    if config["model_type"] == "chameleon" and setup.get("images", 1) > 0:
        vq, images = config["vq_config"], count * setup.get("images", 1)
        height, width = setup.get("image", 2 * [vq["resolution"]])
        smaller = 2 ** (len(vq["channel_multiplier"]) - 1)
        batch["pixel_values"] = torch.zeros(images, 3, height, width, dtype=dtype, device="cuda")
        batch["input_ids"].of_images = images * (height // smaller) * (width // smaller)
    if "mask" in setup:
        batch["attention_mask"] = integers(count, length)
    if config["architectures"][0] in ("BertForPreTraining", "AlbertForPreTraining"):
        batch["next_sentence_label" if config["model_type"] == "bert" else "sentence_order_label"] = integers(count)
    if "TokenClassification" in config["architectures"][0]:
        batch["labels"] = integers(count, length)
    elif "Classification" in config["architectures"][0]:
        batch["labels"] = integers(count)
    elif length is not None and not has_no_head(config["architectures"][0]):
        batch["labels"] = integers(count, setup.get("target", length))
    if "ulysses" in setup:
        batch |= {"position_ids": integers(count, length), "shift_labels": batch["labels"]}
    return batch


@contextlib.contextmanager
def lengths_known():
    """What would make cu_seqlens of a grid makes a tensor that nobody reads (know_grid)."""
    unique, repeat = torch.unique_consecutive, torch.repeat_interleave
    torch.unique_consecutive = lambda tensor: tensor
    torch.repeat_interleave = lambda tensor, *rest, **options: (
        integers(len(tensor.numbers)) if isinstance(tensor, Known) else repeat(tensor, *rest, **options))
    try:
        yield
    finally:
        torch.unique_consecutive, torch.repeat_interleave = unique, repeat


@contextlib.contextmanager
def shared_out(model, setup):
    """DeepSpeed's Ulysses in the place of attention, on one rank of a group that exchanges nothing; where the setup asks for it."""
    if "ulysses" not in setup:
        yield
        return
    from deepspeed.runtime.sequence_parallel import ulysses_sp
    import deepspeed.sequence.layer
    ranks = setup["ulysses"]
    nowhere = types.SimpleNamespace(group_name="ulysses")
    for module in (ulysses_sp, deepspeed.sequence.layer):
        module.dist = types.SimpleNamespace(get_world_size=lambda group: ranks, get_rank=lambda group=None: 0,
                                            all_gather=lambda parts, mine, group: None)
    config, functions = model.config, transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    plain = transformers.integrations.sdpa_attention.sdpa_attention_forward
    exchanged = ulysses_sp.UlyssesSPAttentionHF(
        plain, setup["batch"], config.num_attention_heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        config.num_key_value_heads, config.num_hidden_layers, nowhere, seq_length_is_variable=True)
    functions["sdpa"] = lambda module, query, key, value, mask, *rest, **options: exchanged(module, query, key, value, None, *rest, **options)
    try:
        yield
    finally:
        del functions["sdpa"]


def step_of(model, batch, setup):
    """The forward of one step; as the Trainer of transformers does it, only the loss is kept of what the model returns. A
    model that returns no loss has the sum of its first output."""
    if setup.get("num_items_in_batch"):
        batch = {**batch, "num_items_in_batch": batch["labels"].numel()}
    held = []

    def forward():
        half = setup["dtype"] == "amp-bf16"
        with torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext(), lengths_known():
            outputs = model(**batch)
            held[:] = [outputs] if setup.get("outputs") == "kept" else []
            return outputs.loss if "labels" in batch or "return_loss" in batch else outputs[0].sum()
    return forward


def mem_tracker_peaks(model, forward, inputs, ours):
    """MemTracker's peak without and with its following of modules; without is run only where with differs from ours."""
    followed = None
    differentiates = getattr(model, "differentiates", False)
    if not differentiates and all(parameter.requires_grad for parameter in model.parameters()):  # else it fails
        followed = torch_step.peak_by_mem_tracker(model, forward, inputs)
        if followed == ours:
            return followed, followed
    model.zero_grad(set_to_none=True)
    return torch_step.peak_by_mem_tracker(model, forward, inputs, modules=False), followed


def built(config, setup):
    """The model, the tensors of its batch, and the forward of one step."""
    own = own_models.builder(config)
    if own is not None:
        with torch.device("cuda"), transformers.modeling_utils.no_init_weights(), \
                unittest.mock.patch.object(torch.nn.Module, "_apply", apply_by_replacing):
            model, batch, forward = own(config, setup, DTYPES[setup["dtype"]])
        freeze(model, setup)
        if "lora" in setup:
            with_adapters(model, setup["lora"])
        return model.train(), list(batch.values()), forward
    model, batch = build(config, setup), batch_of(config, setup)
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    return model, tensors, step_of(model, batch, setup)


def measured(config, setup, shared_too):
    with torch_step.fake_gpu(setup.get("mask") != "padded", experts_of(config), float(setup.get("imbalance", 1))):
        model, inputs, forward = built(config, setup)
        with shared_out(model, setup):
            saved = [] if setup.get("checkpoint") else torch_step.saved_tensors(model, forward, inputs)
            step = torch_step.step_memory(model, forward, inputs)
            model.zero_grad(set_to_none=True)
            peak, followed = mem_tracker_peaks(model, forward, inputs, step["peak"])
    groups = torch_step.fold(saved)
    for group in groups:
        group["tensors"] = [entry if entry[6] is not None else entry[:6] for entry in group["tensors"]
                            if shared_too or entry[6] is None]
    if not setup.get("checkpoint"):
        del step["kept"]  # what is saved, and the loss
    return {"setup": {**setup, "operators": sorted(torch_step.sdpa_choices)},
            "saved_bytes": sum(group["bytes"] * len(group["modules"]) for group in groups), "saved": groups,
            "mem_tracker_peak": peak, "mem_tracker_peak_following_modules": followed, "step": step}


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def text_of_run(result):
    groups = []
    for group in result["saved"]:
        tensors = ",\n     ".join(compact(entry) for entry in group["tensors"])
        groups.append(f'{{"modules":{compact(group["modules"])},"bytes":{group["bytes"]},"tensors":[\n     {tensors}]}}')
    members = [f'"setup":{compact(result["setup"])}', f'"saved_bytes":{result["saved_bytes"]}',
               '"saved":[\n    ' + ",\n    ".join(groups) + "]",
               *(f'"{key}":{compact(result[key])}' for key in ("mem_tracker_peak", "mem_tracker_peak_following_modules")),
               '"step":{' + ",\n    ".join(f'"{key}":{compact(value)}' for key, value in result["step"].items()) + "}"]
    return "  {" + ",\n   ".join(members) + "}"


def file_of(family):
    return os.path.join(FOLDER, family + ".json")


def measured_before(family, versions):
    """The cases of the file that were measured with these versions, by what was asked."""
    if not os.path.exists(file_of(family)):
        return {}
    with open(file_of(family), encoding="utf-8") as file:
        data = json.load(file)
    if data["versions"] != versions:
        return {}
    return {asked(case["name"], case["config"], [run["setup"] for run in case["runs"]]): case["runs"]
            for case in data["cases"]}


def asked(name, config, setups):
    return compact([name, config, [{key: value for key, value in setup.items() if key != "operators"} for setup in setups]])


def main():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch_step.work_without_gpu()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    words = sys.argv[1:]
    again = "--again" in words
    for family in [word for word in words if word != "--again"] or cases.FILES:
        before, written = {} if again else measured_before(family, versions), []
        for name, config, setups in cases.FILES[family]:
            results = before.get(asked(name, config, setups))
            if results is None:
                results = [measured(config, setup, i == 0) for i, setup in enumerate(setups)]
                for result in results:
                    report(family, name, result)
            written.append(f'{{"name":{compact(name)},\n "config":{compact(config)},\n "runs":[\n'
                           + ",\n".join(text_of_run(result) for result in results) + "]}")
            with open(file_of(family), "w", encoding="utf-8") as file:
                file.write(f'{{"versions":{compact(versions)},\n"cases":[\n' + ",\n".join(written) + "\n]}\n")


def report(family, name, result):
    peak, tracker = result["step"]["peak"], result["mem_tracker_peak"]
    followed = result["mem_tracker_peak_following_modules"]
    print(family, "|", name, "|", compact(result["setup"]), result["saved_bytes"], peak,
          f"MemTracker {tracker - peak:+}" if tracker != peak else "",
          f"following modules {followed}" if followed != peak else "", flush=True)


if __name__ == "__main__":
    main()
