#!/usr/bin/env python3
"""Writes peft.json: what peft adds to small models of several families, on meta tensors.

Needs torch, transformers and peft; the tests read the file alone. Each case is a config.json, the LoRA options, and the
trainable parameters that peft names, without its prefix "base_model.model.".

    python3 tests/data/lora/make_goldens.py tests/data/lora/peft.json
"""
import copy
import json
import sys

import peft
import torch
import transformers

TEXT = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
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
    *((f"{name}, all linear modules", {"model_type": name, "architectures": [architecture], **values},
       {"r": 4, "target_modules": "all-linear", **(
          {"task_type": "SEQ_CLS", "modules_to_save": ["score" if name == "llama" else "classifier"]} if "Sequence" in architecture else {})})
      for name, architecture, values in (
          ("gpt2", "GPT2LMHeadModel", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
          ("bert", "BertForMaskedLM", {**TEXT, "max_position_embeddings": 64}),
          ("bert", "BertForSequenceClassification", {**TEXT, "max_position_embeddings": 64}),
          ("roberta", "RobertaForSequenceClassification", {**TEXT, "max_position_embeddings": 64}),
          ("electra", "ElectraForSequenceClassification", {**TEXT, "max_position_embeddings": 64, "embedding_size": 24}),
          ("roberta", "RobertaForMaskedLM", {**TEXT, "max_position_embeddings": 64}),
          ("distilbert", "DistilBertForMaskedLM", {"vocab_size": 96, "dim": 32, "hidden_dim": 80, "n_layers": 2, "n_heads": 4}),
          ("electra", "ElectraForMaskedLM", {**TEXT, "max_position_embeddings": 64, "embedding_size": 24}),
          ("albert", "AlbertForMaskedLM", {**TEXT, "max_position_embeddings": 64, "embedding_size": 24}),
          ("siglip", "SiglipForImageClassification", {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "num_labels": 5}),
          ("llama", "LlamaForSequenceClassification", TEXT),
          ("llama", "LlamaForCausalLM", {**TEXT, "tie_word_embeddings": True}),
          ("t5", "T5ForConditionalGeneration", {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
                                                "num_decoder_layers": 2, "num_heads": 4}),
          ("whisper", "WhisperForConditionalGeneration", {
              "vocab_size": 96, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
              "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 20,
              "max_target_positions": 20, "pad_token_id": 0}),
          ("vit", "ViTForImageClassification", {**VISION, "num_labels": 5}),
          ("dinov2", "Dinov2ForImageClassification", {**VISION, "num_labels": 5}),
          ("clip_vision_model", "CLIPVisionModelWithProjection", {**VISION, "projection_dim": 24}),
          ("mixtral", "MixtralForCausalLM", {**TEXT, "num_key_value_heads": 2, "num_local_experts": 3}),
          ("qwen2_moe", "Qwen2MoeForCausalLM", {**TEXT, "num_key_value_heads": 2, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}),
          ("gpt_oss", "GptOssForCausalLM", {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2}),
          ("deepseek_v3", "DeepseekV3ForCausalLM", {
              **TEXT, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 12,
              "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_intermediate_size": 16, "first_k_dense_replace": 1}))),
]


def adapters(config, options):
    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    loaded = transformers.AutoConfig.for_model(config["model_type"], **values)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(loaded)
        model = peft.get_peft_model(model, peft.LoraConfig(**copy.deepcopy(options)))
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
