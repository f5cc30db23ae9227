#!/usr/bin/env python3
"""Writes the state dicts of small models, as their own classes have them, beside the configs that describe them.

    python3 make_goldens.py FILE.json ...      needs torch, transformers 4.57, diffusers 0.39

A file is {"cases": [CASE ...], "errors": [ERROR ...]}.

A CASE is {"name", "config", "tensors"}: `config` is a config.json of the family; `tensors` is filled in here, one line
for each entry of the state dict of its class, which is built without memory:

    NAME [DIMS]                  a parameter
    NAME [DIMS] = OWNER          one tied to an earlier one
    NAME [DIMS] frozen           a parameter that is never trained
    NAME [DIMS] buffer           what is saved but is no parameter

under the names that the class's own files have. A case with "source" has no class here: its lines were written from
that source and stay as they are.

An ERROR is {"case", "with", "without", "key", "problem"}: the case's config with the members of `with` and without the
keys in `without` (either may be absent) is refused with a message about `key` that contains `problem`.
"""
import copy
import json
import re
import sys

import torch
import transformers

# Chameleon's tokenizer of images puts out indices, so no gradient ever reaches it, though its parameters do not say so.
NEVER_TRAINED = {"ChameleonVQVAE"}


def build(config):
    if "model_type" not in config:
        import diffusers

        model_class = getattr(diffusers, config["_class_name"])
        return model_class.from_config(config)
    model_class = getattr(transformers, config["architectures"][0])
    config_classes = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    known = config["model_type"] in config_classes
    config_class = config_classes[config["model_type"]] if known else model_class.config_class
    with transformers.modeling_utils.no_init_weights():
        model = model_class(config_class.from_dict(config))
    model.tie_weights()
    return model


def name_in_file(model, name):
    """What save_pretrained calls it: the reverse of what the class renames while it loads."""
    for in_file, here in getattr(model, "_checkpoint_conversion_mapping", {}).items():
        if "(?" in in_file:
            in_file = in_file.split("(?")[0]
        renamed, count = re.subn(f"^{here}", in_file.lstrip("^"), name)
        if count:
            return renamed
    return name


def never_trained(model):
    """The names of the parameters that stay as they are."""
    names = {name for name, tensor in model.named_parameters() if not tensor.requires_grad}
    for prefix, module in model.named_modules():
        if type(module).__name__ in NEVER_TRAINED:
            names |= {f"{prefix}.{name}" for name, _ in module.named_parameters()}
    return names


def state_dict_lines(model):
    lines, owners = [], {}
    frozen = never_trained(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict(keep_vars=True).items():
        line = f"{name_in_file(model, name)} {json.dumps(list(tensor.shape), separators=(',', ':'))}"
        if name.endswith("e_score_correction_bias"):
            line += " frozen"  # a buffer here, a parameter in the published modeling_deepseek.py
        elif name not in parameters:
            line += " buffer"
        elif id(tensor) in owners:
            line += f" = {owners[id(tensor)]}"
        elif name in frozen:
            line += " frozen"
        owners.setdefault(id(tensor), name_in_file(model, name))
        lines.append(line)
    return lines


def compact(value):
    return json.dumps(value, separators=(", ", ": "))


def text_of(data):
    """Configs and errors on one line each, tensors one by one."""
    cases = []
    for case in data["cases"]:
        members = [f'"{key}": {compact(value)}' for key, value in case.items() if key != "tensors"]
        lines = ",\n   ".join(compact(line) for line in case["tensors"])
        cases.append(" {" + ",\n  ".join(members) + f',\n  "tensors": [\n   {lines}]}}')
    errors = [" " + compact(error) for error in data.get("errors", [])]
    return '{"cases": [\n' + ",\n".join(cases) + '\n],\n"errors": [\n' + ",\n".join(errors) + "\n]}\n"


def main():
    for path in sys.argv[1:]:
        with open(path) as file:
            data = json.load(file)
        for case in data["cases"]:
            if "source" in case:
                continue
            with torch.device("meta"):
                case["tensors"] = state_dict_lines(build(copy.deepcopy(case["config"])))
        with open(path, "w") as file:
            file.write(text_of(data))


if __name__ == "__main__":
    main()
