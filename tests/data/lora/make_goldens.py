#!/usr/bin/env python3
"""Writes peft.json: what peft adds to small models of several families, on meta tensors.

Needs torch, transformers and peft; the tests read the file alone. Each case is a config.json, the LoRA options, and the
trainable parameters that peft names, without its prefix "base_model.model.".

    python3 tests/data/lora/make_goldens.py tests/data/lora/peft.json
"""
import json
import sys

import peft
import torch
import transformers

TEXT = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
CASES = [
    ("llama", {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **TEXT, "num_key_value_heads": 2},
     {"r": 8, "target_modules": ["q_proj", "v_proj"]}),
    ("llama, all linear modules", {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **TEXT},
     {"r": 4, "target_modules": "all-linear"}),
    ("qwen2, biases, a head that is trained", {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **TEXT,
                                               "num_key_value_heads": 2, "tie_word_embeddings": False},
     {"r": 8, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}),
    ("gpt2, transposed weights, an embedding", {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
                                                "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4,
                                                "n_positions": 64},
     {"r": 8, "target_modules": ["c_attn", "mlp.c_proj", "wte"]}),
    ("gpt_neox", {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], **TEXT},
     {"r": 16, "target_modules": ["query_key_value"]}),
    ("bert", {"model_type": "bert", "architectures": ["BertModel"], **TEXT, "max_position_embeddings": 64},
     {"r": 2, "target_modules": ["query", "value"], "modules_to_save": ["pooler"]}),
    ("t5", {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 96, "d_model": 32,
            "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4},
     {"r": 8, "target_modules": ["q", "v"]}),
]


def adapters(config, options):
    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    loaded = transformers.AutoConfig.for_model(config["model_type"], **values)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(loaded)
        model = peft.get_peft_model(model, peft.LoraConfig(**options))
    prefix = "base_model.model."
    return [[name.removeprefix(prefix), list(parameter.shape)] for name, parameter in model.named_parameters()
            if parameter.requires_grad]


def main():
    cases = [{"name": name, "config": config, "lora": options, "trainable": adapters(config, options)}
             for name, config, options in CASES]
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write("[\n")
        for i, case in enumerate(cases):
            file.write(json.dumps(case) + (",\n" if i + 1 < len(cases) else "\n"))
        file.write("]\n")
    print(f"peft {peft.__version__}, transformers {transformers.__version__}: {len(cases)} cases")


if __name__ == "__main__":
    main()
