#!/usr/bin/env python3
"""Writes drawn.json: models and set-ups that a seed draws, of which nobody thought, each measured once.

    python3 tests/data/activations/draw.py [--seed N] [--rounds N] [--checkpoint] [--to FILE] [FAMILY ...]

Of each run it keeps what make_goldens.py keeps but for the lists of tensors. What a class fails on is said and left out. Needs
what make_goldens.py needs. To look for what is not covered yet, take other seeds and another file.
"""
import argparse
import json
import os
import random
import warnings

import peft
import torch
import transformers

import cases
import make_goldens
import torch_step

ACTIVATIONS = ("silu", "gelu", "relu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "tanh")
DROPPED = (0.1,)
QUERIES_AND_VALUES = ("all-linear", ["q_proj", "v_proj"])
ADAPTED = {**{name: QUERIES_AND_VALUES for name in ("llama", "qwen2", "mistral", "gemma", "gemma2", "qwen3", "bart")},
           "gpt2": (["c_attn"], ["c_attn", "c_proj"], "all-linear"), "t5": (["q", "v"], "all-linear"), "bert": (["query", "value"], "all-linear"),
           **{name: ("all-linear",) for name in ("roberta", "distilbert", "mixtral", "qwen2_moe", "phi3", "opt", "gpt_neox", "falcon", "bloom",
                                                 "phi", "whisper", "vit", "dinov2", "deepseek_v3", "olmo2", "gptj")}}


EAGER = ("t5", "mt5", "gpt_oss", "electra", "gptj", "gpt_neo", "bloom", "mpt", "deberta-v2", "swin", "mamba", "falcon_mamba", "mamba2")


class Drawing:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def one(self, *values):
        return self.random.choice(values)

    def some(self, **choices):
        """Each with a chance of 0.4: one of its values."""
        return {name: self.one(*values) for name, values in choices.items() if self.random.random() < 0.4}

    def sizes(self, grouped=True, own_head=False):
        heads, size = self.one(2, 3, 4, 6, 8), self.one(8, 16, 20, 32, 36, 40, 64)
        drawn = {"vocab_size": self.one(96, 97, 501, 1024, 3001), "hidden_size": heads * size,
                 "intermediate_size": self.one(40, 96, 130, 320, 333, 512), "num_hidden_layers": self.one(1, 2, 3, 4, 5, 7),
                 "num_attention_heads": heads, **self.some(tie_word_embeddings=(True, False), use_cache=(True, False))}
        if grouped:
            drawn["num_key_value_heads"] = self.one(*(n for n in range(1, heads + 1) if heads % n == 0))
        if own_head:
            drawn |= self.some(head_dim=(8, 16, 24, 40, 64))
        return drawn

    def window(self):
        return self.some(sliding_window=(4, 16, 64, 4096))

    def windows(self, layers):
        drawn = {"sliding_window": self.one(4, 16, 64, 4096)}
        if self.random.random() < 0.5:
            drawn["layer_types"] = [self.one("sliding_attention", "full_attention") for _ in range(layers)]
        return drawn

    def decoder(self, name, stem, windows=None, own_head=True, head="ForCausalLM", **choices):
        drawn = self.sizes(own_head=own_head)
        drawn |= self.some(hidden_act=ACTIVATIONS, attention_dropout=DROPPED) | self.some(**choices)
        if windows == "one":
            drawn |= self.window()
        elif windows == "each":
            drawn |= self.windows(drawn["num_hidden_layers"])
        return cases.model(name, stem + head, pad_token_id=0, **drawn)

    def qwen(self, name, stem):
        drawn = self.decoder(name, stem, own_head=name != "qwen2")
        if self.random.random() < 0.5:
            drawn |= {"use_sliding_window": True, "max_window_layers": self.one(1, 2), **self.windows(drawn["num_hidden_layers"])}
        return drawn

    def experts(self, drawn, count, **more):
        return {**drawn, count: self.one(3, 5, 6), "num_experts_per_tok": self.one(1, 2, 3), **more}

    def gpt2(self, head, name="gpt2", **choices):
        heads, size = self.one(2, 4, 5), self.one(8, 16, 20, 32)
        return cases.model(name, head, vocab_size=self.one(96, 501), n_embd=heads * size, n_layer=self.one(1, 2, 3, 4), n_head=heads,
                           n_positions=self.one(130, 160), pad_token_id=0,
                           **self.some(n_inner=(100,), activation_function=ACTIVATIONS, resid_pdrop=(0.0,), embd_pdrop=(0.0,),
                                       attn_pdrop=(0.0,), tie_word_embeddings=(False,), use_cache=(False,)), **self.some(**choices))

    def gpt_neo(self):
        heads, layers = self.one(2, 4, 5), self.one(2, 4)
        return cases.model("gpt_neo", "GPTNeoForCausalLM", vocab_size=self.one(96, 501), hidden_size=heads * self.one(8, 16, 20),
                           num_layers=layers, num_heads=heads, attention_types=[[["global", "local"], layers // 2]], pad_token_id=0,
                           max_position_embeddings=self.one(130, 160), window_size=self.one(4, 16, 200),
                           **self.some(intermediate_size=(100,), activation_function=ACTIVATIONS, attention_dropout=DROPPED,
                                       embed_dropout=DROPPED, resid_dropout=DROPPED, use_cache=(False,)))

    def ungrouped(self, name, stem, **choices):
        return cases.model(name, stem + "ForCausalLM", pad_token_id=0, **self.sizes(grouped=False), **self.some(
            hidden_act=ACTIVATIONS, attention_dropout=DROPPED, hidden_dropout=DROPPED), **self.some(**choices))

    def falcon(self):
        drawn = self.sizes(grouped=False)
        drawn.pop("intermediate_size")
        heads = drawn["num_attention_heads"]
        if self.random.random() < 0.5:
            drawn |= {"new_decoder_architecture": True, "num_kv_heads": self.one(*(n for n in range(1, heads + 1) if heads % n == 0)),
                      **self.some(num_ln_in_parallel_attn=(1, 2))}
        else:
            drawn |= self.some(multi_query=(False,), parallel_attn=(False,))
        return cases.model("falcon", "FalconForCausalLM", pad_token_id=0, **drawn, **self.some(
            bias=(True,), attention_dropout=DROPPED, hidden_dropout=DROPPED, ffn_hidden_size=(100,), activation=("relu", "gelu_new")))

    def opt(self):
        heads = self.one(2, 4, 5)
        width = heads * self.one(8, 16, 32)
        return cases.model("opt", "OPTForCausalLM", vocab_size=self.one(96, 501), hidden_size=width, ffn_dim=self.one(100, 320),
                           num_hidden_layers=self.one(1, 2, 4), num_attention_heads=heads, max_position_embeddings=self.one(130, 160),
                           word_embed_proj_dim=self.one(width, 24), **self.some(
                               do_layer_norm_before=(False,), dropout=(0.0,), attention_dropout=DROPPED, enable_bias=(False,),
                               layer_norm_elementwise_affine=(False,), activation_function=ACTIVATIONS, use_cache=(False,)))

    def heads_and_layers(self, name, stem, width, layers, heads, **choices):
        """Bloom and MPT, which call their sizes otherwise."""
        count = self.one(2, 4, 8)
        return cases.model(name, stem + "ForCausalLM", pad_token_id=0, vocab_size=self.one(96, 501), **{
            width: count * self.one(8, 16, 20), layers: self.one(1, 2, 4), heads: count}, **self.some(**choices))

    def distilbert(self):
        heads = self.one(2, 4, 5)
        return cases.model("distilbert", "DistilBertFor" + self.one("MaskedLM", "SequenceClassification", "TokenClassification"),
                           vocab_size=self.one(96, 501), dim=heads * self.one(8, 16, 20), hidden_dim=self.one(100, 320),
                           n_layers=self.one(1, 2, 4), n_heads=heads, max_position_embeddings=self.one(130, 160), **self.some(
                               dropout=(0.0,), attention_dropout=(0.0,), activation=("relu",)))

    def deberta(self):
        return cases.model("deberta-v2", self.one("DebertaV2ForMaskedLM", "DebertaV2ForSequenceClassification", "DebertaV2ForTokenClassification"),
                           **{**cases.DEBERTA, **self.some(
                               share_att_key=(False,), pos_att_type=(["c2p"], ["p2c"]), position_buckets=(8, -1), num_hidden_layers=(1, 2),
                               type_vocab_size=(2,), position_biased_input=(True,), norm_rel_ebd=("none",), hidden_dropout_prob=(0.0,),
                               attention_probs_dropout_prob=(0.0,), embedding_size=(48,))})

    def latent(self, name, stem, sizes):
        return cases.model(name, stem + "ForCausalLM", **{**sizes, **self.some(
            q_lora_rank=(None,), num_hidden_layers=(1, 2, 4), first_k_dense_replace=(0, 2), attention_dropout=DROPPED,
            attention_bias=(True,), n_shared_experts=(2,))})

    def dbrx(self):
        return cases.model("dbrx", "DbrxForCausalLM", **{
            **cases.DBRX, "n_layers": self.one(1, 2, 4), "attn_config": {"clip_qkv": 8, "kv_n_heads": self.one(1, 2, 4), **self.some(attn_pdrop=DROPPED)},
            "ffn_config": {**cases.DBRX["ffn_config"], "moe_num_experts": self.one(3, 5), "moe_top_k": self.one(1, 2),
                           **self.some(moe_jitter_eps=(0,), ffn_act_fn=({"name": "gelu"},))}}, **self.some(resid_pdrop=DROPPED, emb_pdrop=DROPPED))

    def scan(self, name, stem):
        return cases.model(name, stem + "ForCausalLM", vocab_size=self.one(96, 501), hidden_size=self.one(32, 64), state_size=self.one(4, 8),
                           num_hidden_layers=self.one(1, 2, 4), **self.some(
                               expand=(1, 3), conv_kernel=(2, 3), use_bias=(True,), use_conv_bias=(False,), time_step_rank=(3,),
                               residual_in_fp32=(False,), tie_word_embeddings=(False,), hidden_act=("gelu",)))

    def mamba2(self):
        heads, size = self.one(4, 8), self.one(8, 16)
        return cases.model("mamba2", "Mamba2ForCausalLM", **{
            **cases.MAMBA2, "hidden_size": heads * size // 2, "num_heads": heads, "head_dim": size, "n_groups": self.one(1, 2, 4),
            "chunk_size": self.one(8, 16, 64), **self.some(num_hidden_layers=(1, 2), use_bias=(True,), use_conv_bias=(False,),
                                                           residual_in_fp32=(False,), state_size=(8,), conv_kernel=(2,))})

    def swin(self):
        return cases.model("swin", "SwinForImageClassification", **{
            **cases.SWIN, **self.some(image_size=(40, 54), depths=([2, 2, 2], [1, 3, 1]), window_size=(3, 7), drop_path_rate=(0.0,), mlp_ratio=(2.0,),
                                      qkv_bias=(False,), hidden_dropout_prob=DROPPED, attention_probs_dropout_prob=DROPPED,
                                      use_absolute_embeddings=(True,), hidden_act=("relu",))})

    def encoder(self, name, stem, heads=("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"), **more):
        drawn = {**self.sizes(grouped=False), "max_position_embeddings": self.one(130, 140, 256), **more}
        drawn.pop("tie_word_embeddings", None)
        return cases.model(name, stem + self.one(*heads), **drawn, **self.some(
            hidden_act=("relu", "gelu_new"), hidden_dropout_prob=(0.0,), attention_probs_dropout_prob=(0.0,), type_vocab_size=(1, 3)))

    def t5(self, name, stem):
        return cases.model(name, stem + "ForConditionalGeneration", vocab_size=self.one(96, 501), d_model=self.one(64, 96, 128),
                           d_kv=self.one(16, 32, 40), d_ff=self.one(100, 320), num_layers=self.one(1, 2, 3),
                           num_decoder_layers=self.one(1, 2, 3), num_heads=self.one(2, 4), decoder_start_token_id=0,
                           **self.some(feed_forward_proj=("gated-gelu", "relu", "gated-silu"), dropout_rate=(0.0,)))

    def bart(self):
        return cases.model("bart", "BartForConditionalGeneration", **{
            **cases.BART, "max_position_embeddings": 160, "d_model": self.one(64, 128), "encoder_layers": self.one(1, 2, 3),
            "decoder_layers": self.one(1, 2), **self.some(dropout=(0.0,), attention_dropout=DROPPED, activation_dropout=DROPPED)})

    def whisper(self):
        return cases.model("whisper", "WhisperForConditionalGeneration", **{
            **cases.WHISPER, "max_target_positions": 160, "encoder_layers": self.one(1, 2, 3), "decoder_layers": self.one(1, 2, 3),
            **self.some(d_model=(64,), dropout=DROPPED, attention_dropout=DROPPED, activation_dropout=DROPPED)})

    def images(self, name, architecture, **more):
        return cases.model(name, architecture, **{
            **cases.VISION, **more, **self.some(image_size=(32, 48), num_hidden_layers=(1, 2, 5), hidden_act=ACTIVATIONS)})

    def setup(self, config):
        name, sees = config["model_type"], "patch_size" in config
        drawn = {"attention": "eager" if name in EAGER else self.one("sdpa", "sdpa", "eager"),
                 "dtype": self.one("bf16", "fp32"), "batch": self.one(1, 2, 3, 5),
                 "sequence": None if sees else self.one(7, 16, 17, 33, 40, 64, 100, 127),
                 **self.some(checkpoint=(True,)), **({} if sees or name == "whisper" else self.some(mask=("ones", "padded")))}
        if name in ("t5", "mt5", "bart", "whisper"):
            drawn["target"] = self.one(9, 20, 33, 64)
        if name in ADAPTED and self.random.random() < 0.3:
            drawn["lora"] = {"r": self.one(4, 8), "target_modules": self.one(*ADAPTED[name])}
            if drawn["lora"]["target_modules"] == "all-linear" and "vocab_size" in config and "Classification" in config["architectures"][0]:
                del drawn["lora"]  # whether the classifier is meant follows from peft's task
        elif name in ("llama", "qwen2", "gemma2", "olmo2", "mixtral") and self.random.random() < 0.3:
            drawn["freeze"] = [self.one("model.embed_tokens.*", "*.mlp.*", "*norm.weight", "*.self_attn.*", "*.layers.0.*")]
        return drawn


FAMILIES = {
    "llama": lambda d: d.decoder("llama", "Llama", attention_bias=(True,), mlp_bias=(True,)),
    "labels": lambda d: d.decoder("llama", "Llama", head=d.one("ForSequenceClassification", "ForTokenClassification", "Model")),
    "mistral": lambda d: d.decoder("mistral", "Mistral", windows="one"),
    "qwen2": lambda d: d.qwen("qwen2", "Qwen2"),
    "qwen3": lambda d: d.qwen("qwen3", "Qwen3"),
    "gemma": lambda d: d.decoder("gemma", "Gemma", attention_bias=(True,), hidden_activation=ACTIVATIONS),
    "gemma2": lambda d: d.decoder("gemma2", "Gemma2", windows="each", attn_logit_softcapping=(None, 30.0),
                                  final_logit_softcapping=(None, 20.0), hidden_activation=ACTIVATIONS),
    "gemma3_text": lambda d: d.decoder("gemma3_text", "Gemma3", windows="each", attn_logit_softcapping=(30.0,),
                                       final_logit_softcapping=(20.0,)),
    "phi3": lambda d: d.decoder("phi3", "Phi3", windows="one", own_head=False, resid_pdrop=DROPPED, partial_rotary_factor=(0.5,)),
    "olmo": lambda d: d.decoder("olmo", "Olmo", own_head=False, clip_qkv=(8.0,), attention_bias=(True,)),
    "olmo2": lambda d: d.decoder("olmo2", "Olmo2", own_head=False, attention_bias=(True,)),
    "olmo3": lambda d: d.decoder("olmo3", "Olmo3", windows="each", own_head=False),
    "cohere": lambda d: d.decoder("cohere", "Cohere", own_head=False, use_qk_norm=(True,), attention_bias=(True,)),
    "granite": lambda d: d.decoder("granite", "Granite", own_head=False, attention_bias=(True,), mlp_bias=(True,)),
    "nemotron": lambda d: d.decoder("nemotron", "Nemotron", attention_bias=(True,), partial_rotary_factor=(0.25, 1.0)),
    "stablelm": lambda d: d.decoder("stablelm", "StableLm", own_head=False, qk_layernorm=(True,), use_qkv_bias=(True,),
                                    use_parallel_residual=(True,), hidden_dropout=DROPPED, partial_rotary_factor=(1.0,)),
    "starcoder2": lambda d: d.decoder("starcoder2", "Starcoder2", windows="one", own_head=False, use_bias=(False,),
                                      residual_dropout=DROPPED, embedding_dropout=DROPPED),
    "gpt2": lambda d: d.gpt2(d.one("GPT2LMHeadModel", "GPT2LMHeadModel", "GPT2ForSequenceClassification")),
    "mixtral": lambda d: d.experts(d.decoder("mixtral", "Mixtral", windows="one", router_jitter_noise=(0.01,)), "num_local_experts"),
    "qwen2_moe": lambda d: d.experts(d.decoder("qwen2_moe", "Qwen2Moe", own_head=False, qkv_bias=(False,), decoder_sparse_step=(2,)),
                                     "num_experts", moe_intermediate_size=d.one(24, 48), shared_expert_intermediate_size=d.one(32, 96)),
    "qwen3_moe": lambda d: d.experts(d.decoder("qwen3_moe", "Qwen3Moe", attention_bias=(True,), decoder_sparse_step=(2,)),
                                     "num_experts", moe_intermediate_size=d.one(24, 48)),
    "olmoe": lambda d: d.experts(d.decoder("olmoe", "Olmoe", own_head=False, clip_qkv=(8.0,), attention_bias=(True,)), "num_experts"),
    "gpt_oss": lambda d: d.experts(d.decoder("gpt_oss", "GptOss", windows="each"), "num_local_experts"),
    "deepseek_v3": lambda d: cases.model("deepseek_v3", "DeepseekV3ForCausalLM", **{**cases.MLA, **d.some(
        q_lora_rank=(None,), num_hidden_layers=(1, 2, 4), first_k_dense_replace=(0, 2), attention_dropout=DROPPED)}),
    "bert": lambda d: d.encoder("bert", "Bert"),
    "roberta": lambda d: d.encoder("roberta", "Roberta", pad_token_id=1),
    "electra": lambda d: d.encoder("electra", "Electra", embedding_size=d.one(40, 64, 128)),
    "t5": lambda d: d.t5("t5", "T5"),
    "mt5": lambda d: d.t5("mt5", "MT5"),
    "bart": lambda d: d.bart(),
    "whisper": lambda d: d.whisper(),
    "vit": lambda d: d.images("vit", "ViTForImageClassification", **d.some(hidden_dropout_prob=DROPPED, qkv_bias=(False,))),
    "clip_vision_model": lambda d: d.images("clip_vision_model", "CLIPVisionModelWithProjection", projection_dim=48,
                                            **d.some(attention_dropout=DROPPED)),
    "dinov2": lambda d: d.images("dinov2", "Dinov2ForImageClassification", mlp_ratio=4,
                                 **d.some(drop_path_rate=DROPPED, use_swiglu_ffn=(True,), qkv_bias=(False,))),
    "gpt_bigcode": lambda d: d.gpt2("GPTBigCodeForCausalLM", "gpt_bigcode", multi_query=(False,)),
    "gptj": lambda d: d.gpt2("GPTJForCausalLM", "gptj") | {"rotary_dim": d.one(4, 8)},
    "gpt_neo": lambda d: d.gpt_neo(),
    "gpt_neox": lambda d: d.ungrouped("gpt_neox", "GPTNeoX", use_parallel_residual=(False,), rotary_pct=(0.5, 1.0), attention_bias=(False,)),
    "phi": lambda d: d.ungrouped("phi", "Phi", partial_rotary_factor=(0.25, 1.0), qk_layernorm=(True,), resid_pdrop=DROPPED, embd_pdrop=DROPPED),
    "falcon": lambda d: d.falcon(),
    "opt": lambda d: d.opt(),
    "bloom": lambda d: d.heads_and_layers("bloom", "Bloom", "hidden_size", "n_layer", "n_head", hidden_dropout=DROPPED, attention_dropout=DROPPED,
                                          apply_residual_connection_post_layernorm=(True,), use_cache=(False,)),
    "mpt": lambda d: d.heads_and_layers("mpt", "Mpt", "d_model", "n_layers", "n_heads", expansion_ratio=(2, 3), max_seq_len=(128, 160),
                                        attn_config=({"clip_qkv": 8.0}, {"attn_pdrop": 0.1}, {"alibi": False}), resid_pdrop=DROPPED, emb_pdrop=DROPPED),
    "distilbert": lambda d: d.distilbert(),
    "albert": lambda d: d.encoder("albert", "Albert", embedding_size=d.one(40, 64), **d.some(inner_group_num=(2,))),
    "deberta-v2": lambda d: d.deberta(),
    "deepseek_v2": lambda d: d.latent("deepseek_v2", "DeepseekV2", cases.MLA_V2),
    "phimoe": lambda d: d.experts(d.decoder("phimoe", "Phimoe", own_head=False, attention_bias=(True,), lm_head_bias=(True,), router_jitter_noise=(0.02,),
                                            input_jitter_noise=(0.01,)), "num_local_experts") | {"num_experts_per_tok": 2},
    "dbrx": lambda d: d.dbrx(),
    "mamba": lambda d: d.scan("mamba", "Mamba"),
    "falcon_mamba": lambda d: d.scan("falcon_mamba", "FalconMamba"),
    "mamba2": lambda d: d.mamba2(),
    "swin": lambda d: d.swin(),
    "siglip_vision_model": lambda d: d.images("siglip_vision_model", "SiglipVisionModel", **d.some(attention_dropout=DROPPED)),
}


def measured(config, setup):
    with torch_step.fake_gpu(setup.get("mask") != "padded", make_goldens.experts_of(config)):
        model, inputs, forward = make_goldens.built(config, setup)
        saved = [] if setup.get("checkpoint") else torch_step.saved_tensors(model, forward, inputs)
        step = torch_step.step_memory(model, forward, inputs)
    operators = sorted(torch_step.sdpa_choices)
    return {"setup": {**setup, "operators": operators},
            "saved_bytes": sum(group["bytes"] * len(group["modules"]) for group in torch_step.fold(saved)),
            "step": {key: step[key] for key in ("peak", "live_at_peak")}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--checkpoint", action="store_true", help="blocks of all models are recomputed")
    parser.add_argument("--to", default=os.path.join(make_goldens.FOLDER, "drawn.json"))
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=" ".join(FAMILIES))
    options = parser.parse_args()
    unknown = sorted(set(options.families) - set(FAMILIES))
    if unknown:
        parser.error(f"unknown FAMILY {unknown[0]}")
    if (options.families or options.checkpoint) and options.to == parser.get_default("to"):
        parser.error("--to FILE is needed where families are named or all are recomputed: drawn.json is of all")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch_step.work_without_gpu()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    written = []
    for family in options.families or FAMILIES:
        drawing = Drawing(f"{options.seed} {family}")
        for i in range(options.rounds):
            config = FAMILIES[family](drawing)
            setup = {**drawing.setup(config), **({"checkpoint": True} if options.checkpoint else {})}
            if setup.get("checkpoint") and family == "gpt_bigcode":
                continue  # the class accepts it and keeps everything
            try:
                run = measured(config, setup)
            except (RuntimeError, TypeError, ValueError) as error:
                print(family, i, "the class fails:", str(error).split("\n", maxsplit=1)[0][:100], flush=True)
                continue
            written.append('{"name":%s,"config":%s,\n "runs":[%s]}' % (
                json.dumps(f"{family} {i}"), make_goldens.compact(config), make_goldens.compact(run)))
            with open(options.to, "w", encoding="utf-8") as file:
                file.write('{"versions":%s,\n"cases":[\n%s\n]}\n' % (make_goldens.compact(versions), ",\n".join(written)))


if __name__ == "__main__":
    main()
