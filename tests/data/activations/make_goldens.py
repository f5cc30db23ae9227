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
        loaded.use_cache = setup["use_cache"]
    with torch.device("cuda"), transformers.modeling_utils.no_init_weights():
        model = getattr(transformers, config["architectures"][0])._from_config(
            loaded, dtype=DTYPES[setup["dtype"]], attn_implementation=setup["attention"])
    model.tie_weights()  # as from_pretrained does; _from_config alone leaves a head of its own
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


def has_no_head(architecture):
    return architecture.endswith("Model") and not architecture.endswith("LMHeadModel")


def batch_of(config, setup):
    count, length, dtype = setup["batch"], setup["sequence"], DTYPES[setup["dtype"]]
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
    if config["model_type"] == "gemma3":
        size, images = config["vision_config"]["image_size"], count * setup.get("images", 1)
        batch["pixel_values"] = torch.zeros(images, 3, size, size, dtype=dtype, device="cuda")
        batch["token_type_ids"] = integers(count, length)
        batch["input_ids"].of_images = images * config["mm_tokens_per_image"]
    if config["model_type"] == "chameleon" and setup.get("images", 1) > 0:
        vq, images = config["vq_config"], count * setup.get("images", 1)
        height, width = setup.get("image", 2 * [vq["resolution"]])
        smaller = 2 ** (len(vq["channel_multiplier"]) - 1)
        batch["pixel_values"] = torch.zeros(images, 3, height, width, dtype=dtype, device="cuda")
        batch["input_ids"].of_images = images * (height // smaller) * (width // smaller)
    if "mask" in setup:
        batch["attention_mask"] = integers(count, length)
    if "Classification" in config["architectures"][0]:
        batch["labels"] = integers(count)
    elif length is not None and not has_no_head(config["architectures"][0]):
        batch["labels"] = integers(count, setup.get("target", length))
    return batch


def step_of(model, batch, setup):
    """The forward of one step; as the Trainer of transformers does it, only the loss is kept of what the model returns. A
    model that returns no loss has the sum of its first output."""
    if setup.get("num_items_in_batch"):
        batch = {**batch, "num_items_in_batch": batch["labels"].numel()}
    held = []

    def forward():
        half = setup["dtype"] == "amp-bf16"
        with torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext():
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
    with torch_step.fake_gpu(setup.get("mask") != "padded", experts_of(config)):
        model, inputs, forward = built(config, setup)
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
