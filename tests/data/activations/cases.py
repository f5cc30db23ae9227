"""The models and set-ups of the goldens: FILES[file] is a list of (name, config, runs)."""


def model(model_type, architecture, **config):
    return {"model_type": model_type, "architectures": [architecture], **config}


def run(attention, dtype, batch, sequence, **options):
    return {"attention": attention, "dtype": dtype, "batch": batch, "sequence": sequence, **options}


SMALL = ((2, 17), (3, 64))


def plain(shapes=SMALL, attentions=("sdpa", "eager"), dtypes=("bf16", "fp32"), **options):
    return [run(attention, dtype, *shape, **options) for attention in attentions for dtype in dtypes for shape in shapes]


def brief(attentions=("sdpa", "eager"), lengths=(17, 40), **options):
    """Each attention and each type at least once."""
    first, last = attentions[0], attentions[-1]
    short, long = lengths
    runs = [run(first, "bf16", 2, short, **options), run(first, "fp32", 3, long, **options)]
    return runs if first == last else [*runs, run(last, "bf16", 3, long, **options)]


def masked():
    return [*brief(mask="ones"), *brief(mask="padded"), *brief(mask="ones", use_cache=False)]


TEXT = {"vocab_size": 96, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {**TEXT, "num_key_value_heads": 2}
HEADS_OF_40 = {**GROUPED, "head_dim": 40}
LLAMA_7B = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 2,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
ENCODER = {**TEXT, "max_position_embeddings": 130}
EXPERTS = {**GROUPED, "num_local_experts": 5, "num_experts_per_tok": 2}
QWEN_EXPERTS = {**GROUPED, "head_dim": 32, "moe_intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 3}
DBRX = {"d_model": 128, "n_heads": 4, "n_layers": 3, "vocab_size": 96, "max_seq_len": 128,
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 5, "moe_top_k": 2, "moe_jitter_eps": 0.01}}
MAMBA2 = {"vocab_size": 96, "hidden_size": 64, "state_size": 16, "num_hidden_layers": 3, "num_heads": 8, "head_dim": 16, "expand": 2,
          "n_groups": 2, "chunk_size": 16}
JAMBA = {**GROUPED, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1,
         "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 3, "num_experts_per_tok": 2, "mamba_d_state": 8,
         "mamba_dt_rank": 4, "use_mamba_kernels": False}
LLAMA4 = {**GROUPED, "head_dim": 32, "intermediate_size": 48, "intermediate_size_mlp": 96, "num_hidden_layers": 4,
          "num_local_experts": 3, "num_experts_per_tok": 1, "pad_token_id": 0}
GEMMA3 = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 4, "image_token_index": 7,
          "text_config": {"model_type": "gemma3_text", **HEADS_OF_40, "sliding_window": 16,
                          "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
          "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
                            "num_attention_heads": 4, "image_size": 32, "patch_size": 4, "vision_use_head": False}}
LLAMA4_IMAGES = {"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"], "image_token_index": 7,
                 "text_config": {"model_type": "llama4_text", **LLAMA4},
                 "vision_config": {"model_type": "llama4_vision_model", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
                                   "num_attention_heads": 4, "image_size": 24, "patch_size": 4, "projector_input_dim": 80,
                                   "projector_output_dim": 80, "vision_output_dim": 80}}
LLAMA4_LONE = {**LLAMA4_IMAGES, "text_config": {**LLAMA4_IMAGES["text_config"], "num_hidden_layers": 2, "interleave_moe_layer_step": 2},
               "vision_config": {**LLAMA4_IMAGES["vision_config"], "hidden_size": 72, "intermediate_size": 648, "num_hidden_layers": 5,
                                 "num_attention_heads": 3, "image_size": 18, "patch_size": 3, "pixel_shuffle_ratio": 1 / 3,
                                 "attention_dropout": 0.1, "projector_dropout": 0.1}}
CLIP_TOWER = {"model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 5, "num_attention_heads": 4,
              "image_size": 24, "patch_size": 6}
LLAVA = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 7,
         "text_config": {"model_type": "llama", **GROUPED}, "vision_config": CLIP_TOWER}
LLAVA_QWEN = {**LLAVA, "vision_feature_layer": -1, "vision_feature_select_strategy": "full", "projector_hidden_act": "relu",
              "multimodal_projector_bias": False, "text_config": {"model_type": "qwen2", **HEADS_OF_40, "num_hidden_layers": 5},
              "vision_config": {**CLIP_TOWER, "num_hidden_layers": 2, "hidden_size": 60, "num_attention_heads": 5, "attention_dropout": 0.1}}
LLAVA_MISTRAL = {**LLAVA, "vision_feature_layer": 3, "text_config": {"model_type": "mistral", **GROUPED, "sliding_window": 16}}
QWEN_TEXT = {**GROUPED, "rope_scaling": {"type": "mrope", "mrope_section": [8, 4, 4]}}
QWEN25_VL = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], "image_token_id": 7, "text_config": QWEN_TEXT,
             "vision_config": {"depth": 7, "hidden_size": 64, "intermediate_size": 88, "num_heads": 4, "patch_size": 4, "window_size": 16,
                               "out_hidden_size": 128, "fullatt_block_indexes": [1, 6]}}
QWEN2_VL = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "image_token_id": 7, "text_config": QWEN_TEXT,
            "vision_config": {"depth": 4, "embed_dim": 60, "hidden_size": 128, "num_heads": 5, "patch_size": 4, "mlp_ratio": 2}}
MLA = {"vocab_size": 96, "hidden_size": 128, "intermediate_size": 320, "moe_intermediate_size": 48, "num_hidden_layers": 3,
       "num_attention_heads": 4, "num_key_value_heads": 4, "n_shared_experts": 1, "n_routed_experts": 8, "kv_lora_rank": 32,
       "q_lora_rank": 48, "qk_rope_head_dim": 16, "v_head_dim": 32, "qk_nope_head_dim": 32, "n_group": 2, "topk_group": 1,
       "num_experts_per_tok": 2, "first_k_dense_replace": 1}
MLA_V2 = {**{key: value for key, value in MLA.items() if key not in ("n_group", "topk_group")}, "topk_method": "greedy"}
T5 = {"vocab_size": 96, "d_model": 128, "d_kv": 32, "d_ff": 320, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0}
BART = {"vocab_size": 96, "d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 320, "decoder_ffn_dim": 320, "max_position_embeddings": 128}
VISION = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 40,
          "patch_size": 8}
WHISPER = {"vocab_size": 96, "num_mel_bins": 16, "d_model": 128, "encoder_layers": 2, "decoder_layers": 2,
           "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 320, "decoder_ffn_dim": 320,
           "max_source_positions": 25, "max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
           "decoder_start_token_id": 1}

MOONVIT = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 4,
           "init_pos_emb_height": 6, "init_pos_emb_width": 4}
KIMI_VL = {"model_type": "kimi_vl", "architectures": ["KimiVLForConditionalGeneration"],
           "text_config": {"model_type": "deepseek_v3", **{**MLA, "q_lora_rank": None}},
           "vision_config": {"model_type": "moonvit", **MOONVIT}}
SD3 = {"_class_name": "SD3Transformer2DModel", "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 5,
       "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 40, "caption_projection_dim": 64,
       "pooled_projection_dim": 24, "pos_embed_max_size": 12}
SD3_TEXT = {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"], "vocab_size": 96, "hidden_size": 16,
            "intermediate_size": 40, "num_hidden_layers": 5, "num_attention_heads": 2, "projection_dim": 12}
SD3_VAE = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "block_out_channels": [16, 32, 32, 32],
           "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2,
           "latent_channels": 4, "norm_num_groups": 8, "use_quant_conv": False, "use_post_quant_conv": False}
SD3_PIPELINE = {"_class_name": "StableDiffusion3Pipeline", "transformer": SD3, "text_encoder": SD3_TEXT, "text_encoder_2": SD3_TEXT,
                "text_encoder_3": {"model_type": "t5", "architectures": ["T5EncoderModel"], "vocab_size": 96, "d_model": 40, "d_kv": 16,
                                   "d_ff": 120, "num_layers": 5, "num_heads": 2, "feed_forward_proj": "gated-gelu"},
                "vae": SD3_VAE}
FLUX2 = {"_class_name": "Flux2Transformer2DModel", "in_channels": 8, "num_layers": 5, "num_single_layers": 5, "attention_head_dim": 16,
         "num_attention_heads": 4, "joint_attention_dim": 40, "timestep_guidance_channels": 24, "axes_dims_rope": [4, 4, 4, 4],
         "guidance_embeds": False}
FLUX2_LORA = {"r": 4, "target_modules": ["to_k", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "linear_out", "to_q",
                                         "to_qkv_mlp_proj", "to_add_out", "to_v", "linear_in"]}
DIT = {"_class_name": "DiT", "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 5, "num_heads": 4,
       "num_classes": 10, "class_dropout_prob": 0.1, "learn_sigma": True}
DEBERTA = {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True,
           "norm_rel_ebd": "layer_norm", "type_vocab_size": 0, "position_biased_input": False}
SWIN = {"image_size": 52, "patch_size": 4, "embed_dim": 24, "depths": [2, 3, 2], "num_heads": [1, 2, 3], "window_size": 4}
TOWER = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 120, "num_hidden_layers": 4, "num_attention_heads": 3,
         "max_position_embeddings": 20}
UNEVEN_TOWER = {**TOWER, "hidden_size": 60, "num_attention_heads": 5}
SMALL_SD3 = {**SD3, "num_layers": 1}
GLOW = {"model_type": "glow", "levels": 2, "steps_per_level": 5, "image_size": 8, "hidden_channels": 24}
def towers():
    return [run("sdpa", "bf16", 5, 17), run("sdpa", "fp32", 3, 20), run("eager", "bf16", 3, 11), run("eager", "fp32", 1, 17),
            run("sdpa", "bf16", 3, 20, mask="ones"), run("eager", "fp32", 2, 11, mask="padded"),
            run("sdpa", "bf16", 5, 17, checkpoint=True), run("eager", "fp32", 3, 20, mask="ones", checkpoint=True)]


CHAMELEON_VQ = {"base_channels": 32, "channel_multiplier": [1, 2, 2], "num_res_blocks": 2, "embed_dim": 24, "latent_channels": 24,
                "num_embeddings": 16, "resolution": 32}
CHAMELEON = {"model_type": "chameleon", "architectures": ["ChameleonForConditionalGeneration"], **TEXT, "num_key_value_heads": 4,
             "vocabulary_map": {"<image>": 7, **{"IMGIMG" + str(i).translate(str.maketrans("0123456789", "ABCDEFGHIJ")) + "Z": 40 + i
                                                 for i in range(16)}},
             "vq_config": CHAMELEON_VQ}


CNF = {"model_type": "cnf", "data_dims": 21, "hidden_dims": [96, 75], "time_steps": 3}


def images(**options):
    return [run("sdpa", "bf16", 2, 40, **options), run("eager", "fp32", 3, 33, **options)]


def pipelines(**options):
    return [run("sdpa", "bf16", 2, 100, image=[96, 64], **options), run("eager", "fp32", 3, 100, image=[128, 128], **options)]


def flow(**options):
    return [run("eager", "fp32", 3, None, **options), run("eager", "fp32", 1, None, **options)]


def points(**options):
    return [run("eager", "fp32", 64, None, **options), run("eager", "bf16", 33, None, **options), run("eager", "fp32", 5, None, **options)]


CHECKPOINTED = [run("sdpa", "bf16", 3, 40, mask="ones", checkpoint=True), run("sdpa", "bf16", 2, 17, checkpoint=True),
                run("eager", "fp32", 3, 40, checkpoint=True), run("sdpa", "amp-bf16", 3, 40, mask="ones", checkpoint=True),
                run("eager", "bf16", 2, 17, mask="ones", checkpoint=True), run("sdpa", "fp32", 2, 17, checkpoint=True)]
AMP = [run("sdpa", "amp-bf16", 3, 40), run("eager", "amp-bf16", 2, 17), run("sdpa", "amp-bf16", 2, 17, use_cache=False)]
QV = {"r": 8, "target_modules": ["q_proj", "v_proj"]}
LORA = [run("sdpa", "bf16", 3, 40, lora=QV), run("sdpa", "fp32", 3, 40, lora=QV), run("sdpa", "amp-bf16", 3, 40, lora=QV),
        run("sdpa", "bf16", 3, 40, lora={**QV, "lora_dropout": 0.1}),
        run("sdpa", "bf16", 3, 40, lora={**QV, "autocast_adapter_dtype": False}),
        run("sdpa", "bf16", 2, 17, lora={"r": 4, "target_modules": "all-linear"}),
        run("sdpa", "bf16", 3, 40, lora={"r": 4, "target_modules": "all-linear"}, mask="ones", checkpoint=True)]
FROZEN = [run("sdpa", dtype, 3, 40, freeze=names) for dtype in ("bf16", "fp32") for names in (
    ["model.embed_tokens.*"], ["model.embed_tokens.*", "model.layers.0.*"], ["*.mlp.*"], ["*norm.weight"],
    ["model.*"])]

FILES = {
    "llama": [
        ("llama, grouped queries", model("llama", "LlamaForCausalLM", **GROUPED), plain()),
        ("llama, dropped probabilities", model("llama", "LlamaForCausalLM", **GROUPED, attention_dropout=0.1), [*brief(), *brief(mask="padded")[:1]]),
        ("llama, as many key heads as query heads", model("llama", "LlamaForCausalLM", **TEXT), plain()),
        ("llama, two layers of Llama-2-7B", model("llama", "LlamaForCausalLM", **LLAMA_7B),
         plain(shapes=((1, 4096), (3, 1023)))),
        ("llama, the head tied to the embedding, no cache",
         model("llama", "LlamaForCausalLM", **GROUPED, tie_word_embeddings=True), plain(use_cache=False)),
        ("llama, with a mask of the batch", model("llama", "LlamaForCausalLM", **GROUPED), masked()),
        ("llama, biases, heads of 36", model("llama", "LlamaForCausalLM", **{**GROUPED, "head_dim": 36}, attention_bias=True,
                                             mlp_bias=True), brief()),
    ],
    "gpt2": [
        ("gpt2", model("gpt2", "GPT2LMHeadModel", **GPT2), plain()),
        ("gpt2, no dropout", model("gpt2", "GPT2LMHeadModel", **GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
         plain()),
        ("gpt2, no cache", model("gpt2", "GPT2LMHeadModel", **GPT2), plain(use_cache=False)),
        ("gpt2, two layers of gpt2-xl", model("gpt2", "GPT2LMHeadModel", vocab_size=50257, n_embd=1600, n_layer=2,
                                              n_head=25, n_positions=1024), plain(shapes=((4, 1024), (1, 1023)))),
        ("gpt2, with a mask of the batch", model("gpt2", "GPT2LMHeadModel", **GPT2), masked()),
        ("gpt2, relu", model("gpt2", "GPT2LMHeadModel", **GPT2, activation_function="relu"), brief()),
        ("gpt_bigcode", model("gpt_bigcode", "GPTBigCodeForCausalLM", **GPT2), brief()),
        ("gpt_neo", model("gpt_neo", "GPTNeoForCausalLM", vocab_size=96, hidden_size=64, num_layers=2, num_heads=4,
                          attention_types=[[["global", "local"], 1]], max_position_embeddings=128, window_size=16),
         brief(attentions=("eager",))),
        ("gptj", model("gptj", "GPTJForCausalLM", **GPT2, rotary_dim=8), brief(attentions=("eager",))),
    ],
    "decoders": [
        ("mistral", model("mistral", "MistralForCausalLM", **GROUPED), brief()),
        ("mistral, a window shorter than the text", model("mistral", "MistralForCausalLM", **GROUPED, sliding_window=16),
         brief()),
        ("qwen2", model("qwen2", "Qwen2ForCausalLM", **GROUPED), brief()),
        ("qwen2, one key head, with a mask of the batch",
         model("qwen2", "Qwen2ForCausalLM", **{**TEXT, "num_key_value_heads": 1}), [*brief(), *brief(mask="padded")]),
        ("qwen3", model("qwen3", "Qwen3ForCausalLM", **HEADS_OF_40), brief()),
        ("gemma", model("gemma", "GemmaForCausalLM", **HEADS_OF_40), brief()),
        ("gemma2", model("gemma2", "Gemma2ForCausalLM", **HEADS_OF_40), brief()),
        ("gemma2, a window shorter than the text", model("gemma2", "Gemma2ForCausalLM", **HEADS_OF_40, sliding_window=16),
         brief()),
        ("gemma3_text", model("gemma3_text", "Gemma3ForCausalLM", **HEADS_OF_40, sliding_window=16), brief()),
        ("phi3", model("phi3", "Phi3ForCausalLM", **GROUPED, pad_token_id=0), brief()),
        ("olmo", model("olmo", "OlmoForCausalLM", **GROUPED), brief()),
        ("olmo2", model("olmo2", "Olmo2ForCausalLM", **GROUPED), brief()),
        ("olmo3", model("olmo3", "Olmo3ForCausalLM", **GROUPED, sliding_window=16), brief()),
        ("cohere", model("cohere", "CohereForCausalLM", **GROUPED), brief()),
        ("granite", model("granite", "GraniteForCausalLM", **GROUPED), brief()),
        ("nemotron", model("nemotron", "NemotronForCausalLM", **GROUPED), brief()),
        ("phi", model("phi", "PhiForCausalLM", **TEXT), brief()),
    ],
    "gpt_neox": [
        ("gpt_neox", model("gpt_neox", "GPTNeoXForCausalLM", **TEXT), brief()),
        ("gpt_neox, one after the other, dropout", model("gpt_neox", "GPTNeoXForCausalLM", **TEXT, use_parallel_residual=False,
                                                         attention_dropout=0.1, hidden_dropout=0.1), brief()),
        ("falcon, one key head", model("falcon", "FalconForCausalLM", vocab_size=96, hidden_size=128, num_hidden_layers=3,
                                       num_attention_heads=4), brief()),
        ("falcon, a key head for each, one part after the other", model("falcon", "FalconForCausalLM", vocab_size=96, hidden_size=128, num_hidden_layers=2,
                                                                        num_attention_heads=4, multi_query=False, parallel_attn=False),
         [*brief(mask="padded"), run("sdpa", "fp32", 3, 40, mask="padded", checkpoint=True), *brief()[:1]]),
        ("falcon, new decoder", model("falcon", "FalconForCausalLM", vocab_size=96, hidden_size=128, num_hidden_layers=2,
                                      num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True), brief()),
        ("opt", model("opt", "OPTForCausalLM", vocab_size=96, hidden_size=128, ffn_dim=320, num_hidden_layers=3,
                      num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=128), brief()),
        ("bloom", model("bloom", "BloomForCausalLM", vocab_size=96, hidden_size=128, n_layer=3, n_head=4),
         brief(attentions=("eager",))),
        ("bloom, dropout", model("bloom", "BloomForCausalLM", vocab_size=96, hidden_size=128, n_layer=2, n_head=4,
                                 hidden_dropout=0.1, attention_dropout=0.1), brief(attentions=("eager",))),
        ("mpt", model("mpt", "MptForCausalLM", vocab_size=96, d_model=128, n_heads=4, n_layers=3, max_seq_len=128),
         brief(attentions=("eager",))),
    ],
    "experts": [
        ("mixtral", model("mixtral", "MixtralForCausalLM", **EXPERTS), brief()),
        ("mixtral, dropped probabilities", model("mixtral", "MixtralForCausalLM", **EXPERTS, attention_dropout=0.1), brief()),
        ("qwen2_moe", model("qwen2_moe", "Qwen2MoeForCausalLM", **QWEN_EXPERTS, shared_expert_intermediate_size=96), [*brief(), *brief(mask="padded")[:1]]),
        ("qwen3_moe", model("qwen3_moe", "Qwen3MoeForCausalLM", **QWEN_EXPERTS), brief()),
        ("olmoe", model("olmoe", "OlmoeForCausalLM", **GROUPED, num_experts=6, num_experts_per_tok=3), brief()),
        ("gpt_oss", model("gpt_oss", "GptOssForCausalLM", **GROUPED, head_dim=32, num_local_experts=4, num_experts_per_tok=2,
                          sliding_window=16), brief(attentions=("eager",))),
        ("deepseek_v3", model("deepseek_v3", "DeepseekV3ForCausalLM", **MLA), brief()),
        ("deepseek_v2", model("deepseek_v2", "DeepseekV2ForCausalLM", **MLA_V2), brief()),
        ("deepseek_v2, the best of groups", model("deepseek_v2", "DeepseekV2ForCausalLM", **{
            **MLA_V2, "q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}), brief()),
        ("deepseek_v3, no query rank", model("deepseek_v3", "DeepseekV3ForCausalLM", **{**MLA, "q_lora_rank": None}),
         brief()),
    ],
    "phimoe": [
        ("phimoe", model("phimoe", "PhimoeForCausalLM", **EXPERTS),
         [*brief(), *brief(mask="padded")[:2], *brief(mask="ones", checkpoint=True)]),
        ("phimoe, biases, dropout, noise, a window longer than the text",
         model("phimoe", "PhimoeForCausalLM", **EXPERTS, attention_bias=True, lm_head_bias=True, attention_dropout=0.1,
               input_jitter_noise=0.01, sliding_window=64), brief()),
        ("phimoe, five layers, the balance of experts is in the loss",
         model("phimoe", "PhimoeForCausalLM", **{**EXPERTS, "num_hidden_layers": 5}, output_router_logits=True),
         [*brief(), *brief(mask="ones", checkpoint=True)[:1]]),
    ],
    "dbrx": [
        ("dbrx", model("dbrx", "DbrxForCausalLM", **DBRX),
         [*brief(), *brief(mask="padded")[:1], *brief(mask="ones", checkpoint=True)]),
        ("dbrx, dropout", model("dbrx", "DbrxForCausalLM", **{**DBRX, "attn_config": {"clip_qkv": 8, "kv_n_heads": 4, "attn_pdrop": 0.1}},
                                emb_pdrop=0.1, resid_pdrop=0.1), brief()),
        ("dbrx, no clipping, no noise, weights as they are",
         model("dbrx", "DbrxForCausalLM", **{**DBRX, "attn_config": {"kv_n_heads": 1}, "ffn_config": {
             "ffn_hidden_size": 80, "moe_num_experts": 3, "moe_top_k": 1, "moe_normalize_expert_weights": None}}),
         brief(attentions=("sdpa",))),
        ("dbrx, five layers, the balance of experts is in the loss",
         model("dbrx", "DbrxForCausalLM", **{**DBRX, "n_layers": 5}, output_router_logits=True),
         [*brief(), *brief(mask="ones", checkpoint=True)[:1]]),
    ],
    "balance": [
        (f"{name}, the balance of experts is in the loss", {**config, "num_hidden_layers": 5, "output_router_logits": True},
         [run(attention, "bf16", 2, 17), run(attention, "fp32", 3, 40, mask="padded"),
          run(attention, "bf16", 3, 40, mask="ones", checkpoint=True)])
        for name, attention, config in (
            ("mixtral", "sdpa", model("mixtral", "MixtralForCausalLM", **EXPERTS)),
            ("mixtral, noise", "eager", model("mixtral", "MixtralForCausalLM", **EXPERTS, router_jitter_noise=0.01)),
            ("qwen2_moe", "sdpa", model("qwen2_moe", "Qwen2MoeForCausalLM", **QWEN_EXPERTS, shared_expert_intermediate_size=96)),
            ("qwen3_moe, an MLP in every other layer", "sdpa",
             model("qwen3_moe", "Qwen3MoeForCausalLM", **QWEN_EXPERTS, decoder_sparse_step=2)),
            ("olmoe", "eager", model("olmoe", "OlmoeForCausalLM", **GROUPED, num_experts=6, num_experts_per_tok=3)),
            ("gpt_oss", "eager", model("gpt_oss", "GptOssForCausalLM", **GROUPED, head_dim=32, num_local_experts=4,
                                       num_experts_per_tok=2, sliding_window=16)))
    ],
    "ulysses": [
        (f"{name}, ulysses", config,
         [run("sdpa", "bf16", 1, 64, ulysses=2), run("sdpa", "bf16", 3, 80, ulysses=4), run("sdpa", "bf16", 1, 64, ulysses=4, use_cache=False),
          run("sdpa", "bf16", 2, 64, ulysses=2, checkpoint=True)])
        for name, config in (
            ("llama", model("llama", "LlamaForCausalLM", **GROUPED)),
            ("llama, no groups", model("llama", "LlamaForCausalLM", **TEXT)),
            ("qwen2", model("qwen2", "Qwen2ForCausalLM", **GROUPED)),
            ("qwen3", model("qwen3", "Qwen3ForCausalLM", **HEADS_OF_40)),
            ("mistral, dropout", model("mistral", "MistralForCausalLM", **GROUPED, attention_dropout=0.1)),
            ("granite", model("granite", "GraniteForCausalLM", **GROUPED)),
            ("olmo2", model("olmo2", "Olmo2ForCausalLM", **GROUPED)),
            ("mixtral", model("mixtral", "MixtralForCausalLM", **EXPERTS)),
            ("qwen3_moe", model("qwen3_moe", "Qwen3MoeForCausalLM", **QWEN_EXPERTS)))
    ] + [
        ("llama, ulysses, longer", model("llama", "LlamaForCausalLM", **{**GROUPED, "num_hidden_layers": 5}),
         [run("sdpa", "bf16", 1, 1024, ulysses=4), run("sdpa", "bf16", 2, 512, ulysses=2, lora=QV), run("sdpa", "bf16", 1, 1024, ulysses=4, checkpoint=True),
          run("sdpa", "fp32", 2, 128, ulysses=2)]),
    ],
    "imbalance": [
        (f"{name}, imbalance", config,
         [run(attention, "bf16", 2, 17, imbalance=1.7), run(attention, "bf16", 3, 40, imbalance="inf"),
          run(attention, "fp32", 3, 40, imbalance=2.5, mask="ones", checkpoint=True)])
        for name, attention, config in (
            ("mixtral", "sdpa", model("mixtral", "MixtralForCausalLM", **EXPERTS)),
            ("qwen2_moe", "sdpa", model("qwen2_moe", "Qwen2MoeForCausalLM", **QWEN_EXPERTS, shared_expert_intermediate_size=96)),
            ("olmoe", "eager", model("olmoe", "OlmoeForCausalLM", **GROUPED, num_experts=6, num_experts_per_tok=3)),
            ("gpt_oss", "eager", model("gpt_oss", "GptOssForCausalLM", **GROUPED, head_dim=32, num_local_experts=4,
                                       num_experts_per_tok=2, sliding_window=16)),
            ("dbrx", "sdpa", model("dbrx", "DbrxForCausalLM", **DBRX)),
            ("deepseek_v2", "sdpa", model("deepseek_v2", "DeepseekV2ForCausalLM", **MLA_V2)),
            ("deepseek_v3", "sdpa", model("deepseek_v3", "DeepseekV3ForCausalLM", **MLA)))
    ],
    "encoders": [
        ("bert", model("bert", "BertForMaskedLM", **ENCODER), brief()),
        ("bert, no dropout", model("bert", "BertForMaskedLM", **ENCODER, hidden_dropout_prob=0.0,
                                   attention_probs_dropout_prob=0.0), brief()),
        ("bert, with a mask of the batch", model("bert", "BertForMaskedLM", **ENCODER),
         [*brief(mask="ones"), *brief(mask="padded")]),
        ("bert, classes", model("bert", "BertForSequenceClassification", **ENCODER), brief()),
        ("roberta", model("roberta", "RobertaForMaskedLM", **ENCODER, pad_token_id=1), brief()),
        ("electra", model("electra", "ElectraForMaskedLM", **ENCODER, embedding_size=64), brief(attentions=("eager",))),
        ("distilbert", model("distilbert", "DistilBertForMaskedLM", vocab_size=96, dim=128, hidden_dim=320, n_layers=3,
                             n_heads=4, max_position_embeddings=128), brief()),
        ("albert", model("albert", "AlbertForMaskedLM", **ENCODER, embedding_size=64), brief()),
        ("bert, both heads of its first training", model("bert", "BertForPreTraining", **ENCODER),
         [*brief(), *brief(mask="padded")[:1], run("sdpa", "bf16", 5, 40, checkpoint=True)]),
        ("electra, its discriminator", model("electra", "ElectraForPreTraining", **ENCODER, embedding_size=64), brief(attentions=("eager",))),
        ("albert, both heads of its first training", model("albert", "AlbertForPreTraining", **ENCODER, embedding_size=48,
                                                            classifier_dropout_prob=0.1), brief()),
    ],
    "t5": [
        ("t5", model("t5", "T5ForConditionalGeneration", **T5),
         brief(attentions=("eager",), target=9) + brief(attentions=("eager",), target=33)),
        ("t5, gated, its own head", model("t5", "T5ForConditionalGeneration", **T5, feed_forward_proj="gated-gelu",
                                          tie_word_embeddings=False), brief(attentions=("eager",), target=9)),
        ("bart", model("bart", "BartForConditionalGeneration", **BART),
         brief(target=9) + brief(target=33)),
        ("bart, texts of different lengths", model("bart", "BartForConditionalGeneration", **BART),
         [*brief(mask="padded", target=9), *brief(mask="ones", target=33)]),
        ("bart, dropout of attention", model("bart", "BartForConditionalGeneration", **BART, attention_dropout=0.1,
                                             activation_dropout=0.1), brief(target=9)),
        ("whisper", model("whisper", "WhisperForConditionalGeneration", **WHISPER), brief()),
    ],
    "vision": [
        ("vit", model("vit", "ViTForImageClassification", **VISION), brief(lengths=(None, None))),
        ("vit, dropout", model("vit", "ViTForImageClassification", **VISION, hidden_dropout_prob=0.1,
                               attention_probs_dropout_prob=0.1), brief(lengths=(None, None))),
        ("clip_vision_model", model("clip_vision_model", "CLIPVisionModelWithProjection", **VISION, projection_dim=48),
         brief(lengths=(None, None))),
        ("dinov2", model("dinov2", "Dinov2ForImageClassification", **{**VISION, "intermediate_size": 512}, mlp_ratio=4),
         brief(lengths=(None, None))),
        ("siglip_vision_model", model("siglip_vision_model", "SiglipVisionModel", **VISION),
         brief(lengths=(None, None))),
    ],
    "albert": [
        ("albert", model("albert", "AlbertForMaskedLM", **ENCODER, embedding_size=48), [*brief(), *brief(mask="padded")]),
        ("albert, two layers in turn, dropout, a classifier",
         model("albert", "AlbertForSequenceClassification", **ENCODER, embedding_size=48, inner_group_num=2,
               hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1), brief()),
    ],
    "deberta": [
        ("deberta-v2", model("deberta-v2", "DebertaV2ForMaskedLM", **DEBERTA),
         [*brief(attentions=("eager",)), *brief(attentions=("eager",), mask="padded"), run("eager", "bf16", 1, 40),
          run("eager", "fp32", 5, 40, checkpoint=True), run("eager", "bf16", 3, 40, mask="ones", checkpoint=True)]),
        ("deberta-v2, projections of positions, no dropout, a narrow embedding",
         model("deberta-v2", "DebertaV2ForMaskedLM", **{**DEBERTA, "share_att_key": False, "norm_rel_ebd": "none", "type_vocab_size": 2,
                                                          "position_biased_input": True}, embedding_size=48, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
         brief(attentions=("eager",))),
        ("deberta-v2, contents with positions alone, a classifier",
         model("deberta-v2", "DebertaV2ForSequenceClassification", **{**DEBERTA, "share_att_key": False, "pos_att_type": ["c2p"]},
               pooler_dropout=0.1, problem_type="single_label_classification"), brief(attentions=("eager",))),
        ("deberta-v2, no head", model("deberta-v2", "DebertaV2Model", **DEBERTA), brief(attentions=("eager",), mask="ones")),
        ("deberta-v2, a long text", model("deberta-v2", "DebertaV2ForMaskedLM", **{**DEBERTA, "max_position_embeddings": 520, "position_buckets": 64, "intermediate_size": 64}),
         [run("eager", "bf16", 4, 256, checkpoint=True), run("eager", "fp32", 2, 256)]),
        ("deberta-v2, no relative attention", model("deberta-v2", "DebertaV2ForMaskedLM", **ENCODER, relative_attention=False),
         brief(attentions=("eager",))),
    ],
    "swin": [
        ("swin", model("swin", "SwinForImageClassification", **SWIN),
         [*(run("eager", dtype, batch, None, **options) for dtype, batch, options in (
             ("bf16", 3, {}), ("fp32", 1, {}), ("fp32", 2, {"checkpoint": True}), ("bf16", 5, {"checkpoint": True})))]),
        ("swin, sides that no patch divides, no dropped paths, dropout",
         model("swin", "SwinForImageClassification", **{**SWIN, "image_size": 54}, drop_path_rate=0.0, hidden_dropout_prob=0.1,
               attention_probs_dropout_prob=0.1), brief(attentions=("eager",), lengths=(None, None))),
        ("swin, windows of 7", model("swin", "SwinModel", image_size=224, patch_size=4, embed_dim=32, depths=[2, 2, 4, 2], num_heads=[1, 2, 4, 8],
                                     window_size=7, qkv_bias=False), brief(attentions=("eager",), lengths=(None, None))),
    ],
    "dinov2": [
        ("dinov2, dropped paths", model("dinov2", "Dinov2ForImageClassification", **{**VISION, "intermediate_size": 512}, mlp_ratio=4,
                                        drop_path_rate=0.2), brief(lengths=(None, None))),
        ("dinov2, no head", model("dinov2", "Dinov2Model", **{**VISION, "intermediate_size": 512}, mlp_ratio=4), brief(lengths=(None, None))),
        ("vit, no head", model("vit", "ViTModel", **VISION), brief(lengths=(None, None))),
    ],
    "siglip": [
        ("siglip, a classifier", model("siglip", "SiglipForImageClassification",
                                       vision_config={"model_type": "siglip_vision_model", **VISION}),
         [*brief(lengths=(None, None)), run("sdpa", "bf16", 2, None, checkpoint=True)]),
    ],
    "towers": [
        (f"{name}, {kind}", model(name, architecture, text_config=text, vision_config=VISION, **options), towers())
        for name, architecture, options in (("clip", "CLIPModel", {"projection_dim": 24}), ("siglip", "SiglipModel", {}))
        for kind, text in (("equal towers", {**TOWER, "hidden_size": 128, "num_attention_heads": 4}),
                           ("heads of 12", {**UNEVEN_TOWER, "projection_size": 128}))
    ] + [
        ("clip, a classifier", model("clip", "CLIPForImageClassification", vision_config=VISION),
         [*brief(lengths=(None, None)), run("sdpa", "bf16", 2, None, checkpoint=True)]),
    ],
    "mamba": [
        ("mamba", model("mamba", "MambaForCausalLM", vocab_size=96, hidden_size=64, state_size=8, num_hidden_layers=3),
         brief(attentions=("eager",))),
        ("mamba, residual not in fp32", model("mamba", "MambaForCausalLM", vocab_size=96, hidden_size=64, state_size=8,
                                              num_hidden_layers=2, residual_in_fp32=False), brief(attentions=("eager",))),
        ("falcon_mamba", model("falcon_mamba", "FalconMambaForCausalLM", vocab_size=96, hidden_size=64, state_size=8,
                               num_hidden_layers=2), brief(attentions=("eager",))),
    ],
    "mamba2": [
        ("mamba2", model("mamba2", "Mamba2ForCausalLM", **MAMBA2),
         [*brief(attentions=("eager",)), run("eager", "bf16", 2, 32), run("eager", "bf16", 2, 17, mask="padded"),
          run("eager", "bf16", 3, 40, checkpoint=True), run("eager", "bf16", 1, 17)]),
        ("mamba2, biases, residual not in fp32, a head tied to the embedding",
         model("mamba2", "Mamba2ForCausalLM", **MAMBA2, use_bias=True, residual_in_fp32=False, tie_word_embeddings=True),
         brief(attentions=("eager",))),
    ],
    "jamba": [
        ("jamba", model("jamba", "JambaForCausalLM", **JAMBA),
         [*brief(lengths=(11, 16)), run("sdpa", "bf16", 2, 11, mask="padded"), run("eager", "bf16", 2, 11, mask="ones"),
          run("sdpa", "bf16", 2, 11, checkpoint=True)]),
        ("jamba, the balance of experts is in the loss", model("jamba", "JambaForCausalLM", **JAMBA, output_router_logits=True),
         [run("sdpa", "bf16", 2, 11), run("eager", "fp32", 3, 16, mask="ones")]),
    ],
    "llama4": [
        ("llama4_text", model("llama4_text", "Llama4ForCausalLM", **LLAMA4),
         [*brief(), run("sdpa", "bf16", 2, 17, mask="padded"), *brief(mask="ones", checkpoint=True)[:2]]),
        ("llama4_text, chunks shorter than the text, no norms of heads, an MLP in every other layer",
         model("llama4_text", "Llama4ForCausalLM", **LLAMA4, attention_chunk_size=16, use_qk_norm=False, interleave_moe_layer_step=2,
               attn_temperature_tuning=False), brief()),
    ],
    "gemma3": [
        ("gemma3, images", GEMMA3, [*brief(), run("eager", "fp32", 2, 17, mask="ones", images=2), run("sdpa", "bf16", 2, 17, mask="ones", checkpoint=True), run("sdpa", "bf16", 1, 33)]),
        ("gemma3, its tower frozen", GEMMA3, brief(freeze=["*vision_tower.*"])[:2]),
        ("gemma3, adapters of the language model", GEMMA3,
         [run("sdpa", "bf16", 3, 40, lora={"r": 4, "target_modules": ["o_proj", "gate_proj", "down_proj"]}),
          run("sdpa", "fp32", 3, 40, mask="ones", checkpoint=True, lora={"r": 4, "target_modules": ["o_proj", "down_proj"]})]),
        ("gemma3, no image", GEMMA3,
         [*brief(images=0), run("sdpa", "bf16", 2, 17, mask="ones", images=0), run("eager", "fp32", 1, 17, images=0, checkpoint=True),
          run("sdpa", "bf16", 3, 40, images=0, lora={"r": 4, "target_modules": ["o_proj", "gate_proj", "down_proj"]})]),
    ],
    "llama4_images": [
        ("llama4, images", LLAMA4_IMAGES,
         [*brief(), run("eager", "fp32", 2, 33, mask="ones", images=3), run("sdpa", "bf16", 1, 33), run("sdpa", "bf16", 1, 41, images=2),
          run("sdpa", "bf16", 3, 29, mask="padded"), run("sdpa", "bf16", 2, 17, mask="ones", checkpoint=True),
          run("eager", "fp32", 3, 40, checkpoint=True), run("sdpa", "fp32", 1, 23, use_cache=False)]),
        ("llama4, nine patches to a token, dropout", LLAMA4_LONE,
         [*brief(), run("sdpa", "bf16", 1, 19), run("eager", "bf16", 2, 19, images=3, checkpoint=True)]),
        ("llama4, no image", LLAMA4_IMAGES,
         [*brief(images=0), run("sdpa", "bf16", 1, 17, mask="ones", images=0), run("eager", "bf16", 2, 17, images=0, checkpoint=True)]),
        ("llama4, its tower frozen", LLAMA4_IMAGES, brief(freeze=["vision_model.*"])),
        ("llama4, all but the projector frozen", LLAMA4_IMAGES, brief(freeze=["vision_model.*", "language_model.*"])[:2]),
        ("llama4, adapters", LLAMA4_IMAGES,
         [run("sdpa", "bf16", 3, 40, lora=QV), run("eager", "fp32", 2, 23, lora={"r": 4, "target_modules": ["linear", "fc1", "fc2", "linear_1", "lm_head"]}, images=2),
          run("sdpa", "bf16", 1, 23, lora={"r": 4, "target_modules": ["gate_proj", "down_proj", "up_proj"]}),
          run("sdpa", "bf16", 3, 40, mask="ones", checkpoint=True, lora={"r": 4, "target_modules": ["gate_proj", "down_proj"]}),
          run("eager", "fp32", 3, 40, checkpoint=True, lora=QV)]),
    ],
    "llava": [
        ("llava", LLAVA, [*brief(), run("eager", "fp32", 2, 50, mask="ones", images=3), run("sdpa", "bf16", 1, 33), run("sdpa", "bf16", 1, 41, images=2),
                          run("sdpa", "bf16", 3, 29, mask="padded"), run("sdpa", "bf16", 2, 17, mask="ones", checkpoint=True),
                          run("eager", "fp32", 3, 40, checkpoint=True), run("sdpa", "fp32", 1, 23, use_cache=False)]),
        ("llava, Qwen2, all tokens of the last layer", LLAVA_QWEN, [*brief(lengths=(18, 40)), run("sdpa", "bf16", 1, 19, checkpoint=True)]),
        ("llava, Qwen2, windows from the third layer on", {**LLAVA_QWEN, "text_config": {
            **LLAVA_QWEN["text_config"], "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}},
         [run("sdpa", "bf16", 2, 23), run("eager", "fp32", 3, 29, mask="ones")]),
        ("llava, Mistral, the fourth state", LLAVA_MISTRAL, [*brief(), run("eager", "bf16", 2, 35, images=2, checkpoint=True)]),
        ("llava, no image", LLAVA, [*brief(images=0), run("eager", "bf16", 2, 17, images=0, checkpoint=True)]),
        ("llava, its tower frozen", LLAVA, [*brief(freeze=["*vision_tower.*"]), run("sdpa", "bf16", 2, 17, freeze=["*vision_tower.*"], checkpoint=True)]),
        ("llava, all but the projector frozen", LLAVA, brief(freeze=["*vision_tower.*", "*language_model.*", "lm_head.*"])[:2]),
        ("llava, adapters", LLAVA,
         [run("sdpa", "bf16", 3, 40, lora=QV), run("eager", "fp32", 2, 40, lora={"r": 4, "target_modules": ["linear_1", "linear_2", "fc1", "o_proj", "lm_head"]}, images=2),
          run("sdpa", "bf16", 1, 23, lora={"r": 4, "target_modules": ["gate_proj", "down_proj"]}),
          run("sdpa", "bf16", 3, 40, mask="ones", checkpoint=True, lora={"r": 4, "target_modules": ["gate_proj", "down_proj"]}),
          run("eager", "fp32", 3, 40, checkpoint=True, lora=QV)]),
        *[(f"llava, state {state}", {**LLAVA, "vision_feature_layer": state},
           [run("sdpa", "bf16", 2, 23), run("sdpa", "fp32", 2, 40, images=2), run("eager", "fp32", 3, 40), run("sdpa", "bf16", 2, 17, checkpoint=True)])
          for state in (0, 1)],
    ],
    "qwen_vl": [
        (name, config, [run("sdpa", "bf16", 2, 23, image=[40, 24]), run("sdpa", "fp32", 3, 40, image=[24, 64], images=1),
                        run("eager", "bf16", 3, 40, image=[40, 24]), run("eager", "fp32", 2, 33, mask="ones", image=[24, 24], images=3),
                        run("sdpa", "bf16", 1, 17, image=[32, 32]), run("sdpa", "bf16", 3, 29, mask="padded", image=[16, 24]),
                        run("sdpa", "bf16", 2, 17, image=[32, 32], use_cache=False),
                        run("sdpa", "bf16", 2, 17, mask="ones", image=[40, 24], checkpoint=True),
                        run("eager", "fp32", 3, 40, image=[24, 64], checkpoint=True),
                        run("sdpa", "bf16", 2, 17, images=0), run("eager", "fp32", 2, 17, images=0, use_cache=False),
                        run("sdpa", "bf16", 2, 23, image=[40, 24], freeze=["*visual.*"]),
                        run("sdpa", "bf16", 2, 23, image=[40, 24], freeze=["*visual.*"], checkpoint=True),
                        run("eager", "fp32", 2, 23, image=[40, 24], freeze=["*visual.blocks.*", "*visual.patch_embed.*", "*language_model.*", "model.embed_tokens.*", "model.layers.*",
                                                                            "model.norm.*"])])
        for name, config in (("qwen2.5-vl", QWEN25_VL), ("qwen2-vl", QWEN2_VL))
    ] + [
        ("qwen2-vl, windows from the second layer on", {**QWEN2_VL, "text_config": {**QWEN_TEXT, "use_sliding_window": True, "sliding_window": 16,
                                                                                   "max_window_layers": 1}},
         [run("sdpa", "bf16", 2, 23, image=[16, 24]), run("eager", "fp32", 3, 29, mask="ones", image=[16, 24])]),
        ("qwen2.5-vl, adapters", QWEN25_VL, [
            run("sdpa", "bf16", 3, 40, image=[40, 24], lora=QV), run("sdpa", "bf16", 2, 40, image=[40, 24], lora={"r": 4, "target_modules": ["qkv", "gate_proj", "o_proj"]}),
            run("sdpa", "bf16", 2, 40, image=[40, 24], mask="ones", lora=QV, checkpoint=True)]),
    ],
    "chameleon": [
        ("chameleon, words alone", CHAMELEON,
         [*plain(shapes=SMALL[:1], images=0), run("sdpa", "bf16", 3, 40, images=0), run("sdpa", "bf16", 3, 40, images=0, use_cache=False),
          run("sdpa", "bf16", 3, 40, images=0, mask="ones"), run("eager", "bf16", 2, 17, images=0, mask="padded"),
          run("sdpa", "fp32", 2, 17, images=0, mask="padded"), run("sdpa", "bf16", 3, 40, images=0, checkpoint=True),
          run("eager", "fp32", 3, 40, images=0, mask="ones", checkpoint=True)]),
        ("chameleon, swin_norm, grouped queries, biases, dropped probabilities",
         {**CHAMELEON, "num_key_value_heads": 2, "swin_norm": True, "attention_bias": True, "mlp_bias": True, "attention_dropout": 0.1},
         [*brief(images=0), run("sdpa", "bf16", 3, 40, images=0, mask="ones", checkpoint=True),
          run("eager", "fp32", 2, 17, images=0, mask="padded")]),
        ("chameleon, images", CHAMELEON,
         [run("sdpa", "bf16", 2, 70, images=1), run("eager", "fp32", 1, 80, images=1, mask="ones"),
          run("sdpa", "bf16", 2, 50, images=2, image=[16, 24], mask="ones", checkpoint=True),
          run("sdpa", "bf16", 1, 400, images=1), run("eager", "bf16", 2, 30, images=1, image=[21, 14], mask="padded")]),
        ("chameleon, images, attention in a level of the tokenizer, dropout there, swin_norm",
         {**CHAMELEON, "swin_norm": True, "vq_config": {**CHAMELEON_VQ, "attn_resolutions": [16], "dropout": 0.1}},
         [run("sdpa", "bf16", 2, 70, images=1), run("eager", "fp32", 1, 140, images=2, mask="ones")]),
        ("chameleon, images, no attention in the tokenizer, one block of a level, four levels of equal width",
         {**CHAMELEON, "vq_config": {**CHAMELEON_VQ, "attn_type": None, "num_res_blocks": 1, "channel_multiplier": [1, 1, 1, 1]}},
         [run("sdpa", "bf16", 2, 40, images=2), run("eager", "fp32", 3, 20, images=1)]),
        ("chameleon, parts frozen", CHAMELEON,
         [run("sdpa", "bf16", 2, 70, images=1, freeze=["model.embed_tokens.*"]), run("eager", "bf16", 2, 40, images=0, freeze=["*norm*"])]),
        ("chameleon, seven layers, swin_norm", {**CHAMELEON, "num_hidden_layers": 7, "swin_norm": True},
         [run("sdpa", "bf16", 2, 70, images=1, mask="ones"), run("sdpa", "bf16", 2, 70, images=1, checkpoint=True)]),
        ("chameleon, adapters: the tokenizer of images is frozen", CHAMELEON,
         [run("sdpa", "bf16", 2, 70, images=1, lora=QV), run("sdpa", "bf16", 2, 70, images=1, mask="ones", lora=QV, checkpoint=True)]),
    ],
    "kimi_vl": [
        ("kimi_vl", KIMI_VL, [*images(), *images(image=[32, 24]), *images(images=2)]),
        ("kimi_vl, its tower frozen", KIMI_VL, images(freeze=["vision_tower.*"])),
        ("kimi_vl, all but the projector frozen", KIMI_VL, images(freeze=["vision_tower.*", "language_model.*"])),
    ],
    "sd3": [
        (name, {**SD3, **options}, [run("sdpa", "bf16", 2, 21, image=[96, 64]), run("sdpa", "fp32", 3, 21, image=[128, 128]),
                                    run("sdpa", "bf16", 1, 21, image=[96, 64])])
        for name, options in (("sd3", {}), ("sd3.5", {"qk_norm": "rms_norm", "dual_attention_layers": [0, 1, 2]}))
    ] + [
        (name, {**SD3, **options}, [run("sdpa", "bf16", 2, 21, image=[96, 64], checkpoint=True),
                                    run("sdpa", "fp32", 3, 77, image=[128, 128], checkpoint=True)])
        for name, options in (("sd3, recomputed", {}),
                              ("sd3.5, recomputed", {"qk_norm": "rms_norm", "dual_attention_layers": [0, 1, 2]}))
    ],
    "sd3_pipeline": [
        ("sd3 and its encoders", SD3_PIPELINE, pipelines()),
        ("a small sd3: the peak is the autoencoder's", {**SD3_PIPELINE, "transformer": SMALL_SD3}, pipelines()),
        ("a small sd3, images encoded before: the peak is an encoder's",
         {key: value for key, value in {**SD3_PIPELINE, "transformer": SMALL_SD3}.items() if key != "vae"},
         [run("sdpa", "bf16", 8, 200, image=[32, 32]), run("eager", "bf16", 8, 500, image=[32, 32])]),
        ("sd3 and its encoders, recomputed", SD3_PIPELINE, pipelines(checkpoint=True)),
        ("a small sd3, texts encoded before",
         {key: value for key, value in {**SD3_PIPELINE, "transformer": SMALL_SD3}.items() if not key.startswith("text")}, pipelines()),
    ],
    "dit": [
        ("dit", DIT, [run(attention, dtype, batch, None) for attention, dtype, batch in (
            ("sdpa", "fp32", 3), ("sdpa", "bf16", 2), ("eager", "fp32", 2), ("eager", "bf16", 3), ("sdpa", "bf16", 1), ("eager", "fp32", 1),
            ("sdpa", "amp-bf16", 3), ("eager", "amp-bf16", 2))]),
        ("dit, recomputed", DIT, [run("sdpa", "fp32", 3, None, checkpoint=True), run("eager", "bf16", 2, None, checkpoint=True),
                                  run("sdpa", "amp-bf16", 3, None, checkpoint=True)]),
        ("dit, parts frozen", DIT, [run("sdpa", "fp32", 3, None, freeze=["blocks.0.*", "x_embedder.*"]),
                                    run("sdpa", "bf16", 3, None, freeze=["*adaLN*"])]),
        ("dit, variances not learned, no dropped labels, patches of 1, heads of 9",
         {**DIT, "learn_sigma": False, "class_dropout_prob": 0.0, "input_size": 6, "patch_size": 1, "hidden_size": 36},
         [run("sdpa", "fp32", 3, None), run("sdpa", "bf16", 2, None), run("eager", "bf16", 3, None)]),
        ("dit, three layers of DiT-XL/2", {**DIT, "input_size": 32, "hidden_size": 1152, "depth": 3, "num_heads": 16, "num_classes": 1000},
         [run("sdpa", "fp32", 8, None), run("sdpa", "bf16", 16, None), run("sdpa", "amp-bf16", 8, None),
          run("sdpa", "fp32", 8, None, checkpoint=True)]),
    ],
    "flux2": [
        ("flux2", FLUX2, [run("sdpa", "bf16", 2, 21, image=[96, 64]), run("sdpa", "fp32", 3, 21, image=[128, 128]),
                          run("sdpa", "bf16", 1, 21, image=[96, 64]),
                          run("sdpa", "bf16", 2, 21, image=[96, 64], checkpoint=True),
                          run("sdpa", "bf16", 2, 21, image=[96, 64], lora=FLUX2_LORA),
                          run("sdpa", "bf16", 2, 21, image=[96, 64], lora=FLUX2_LORA, checkpoint=True)]),
        ("flux2, guided", {**FLUX2, "guidance_embeds": True}, [run("sdpa", "bf16", 2, 21, image=[96, 64])]),
        ("flux2, wide", {**FLUX2, "num_attention_heads": 16, "attention_head_dim": 64, "axes_dims_rope": [16, 16, 16, 16],
                         "num_layers": 4, "num_single_layers": 6},
         [run("sdpa", "bf16", 2, 128, image=[256, 256], checkpoint=True),
          run("sdpa", "bf16", 2, 128, image=[256, 256], lora=FLUX2_LORA, checkpoint=True)]),
    ],
    "flow": [
        ("glow", GLOW, [*flow(), *flow(recompute="invert")]),
        ("glow, fixed priors", {**GLOW, "learned_prior": False}, [*flow(), *flow(recompute="invert")]),
        ("nice", {**GLOW, "levels": 1, "coupling": "additive", "permutation": "reverse", "actnorm": False},
         [*flow(), *flow(recompute="invert")]),
        ("glow, four times as deep", {**GLOW, "steps_per_level": 20}, [*flow(), *flow(recompute="invert")]),
    ],
    "cnf": [
        (name, {**CNF, **options}, [*points(), *points(recompute="adjoint")]) for name, options in (
            ("cnf", {}),
            ("cnf, time ignored, midpoint, three blocks", {"conditioning": "ignore", "activation": "tanh", "solver": "midpoint", "blocks": 3}),
            ("cnf, concatsquash, euler", {"conditioning": "concatsquash", "activation": "elu", "solver": "euler", "time_steps": 7}),
            ("cnf, concatsquash, four steps, two blocks", {"conditioning": "concatsquash", "activation": "relu", "time_steps": 4, "blocks": 2}),
            ("cnf, wide", {"data_dims": 63, "hidden_dims": [860, 860], "conditioning": "concatsquash"}))
    ] + [
        # Of few points its peak is gradients of one weight, as many as autograd makes before it adds them up.
        ("cnf, a linear field", {**CNF, "hidden_dims": [], "time_steps": 2}, [*points()[:2], *points(recompute="adjoint")]),
    ],
    "checkpoint": [
        ("llama", model("llama", "LlamaForCausalLM", **GROUPED), CHECKPOINTED),
        ("llama, many words, a head tied to the embedding",
         model("llama", "LlamaForCausalLM", **{**GROUPED, "vocab_size": 1000}, tie_word_embeddings=True), CHECKPOINTED[:3]),
        ("gpt2", model("gpt2", "GPT2LMHeadModel", **GPT2), CHECKPOINTED),
        ("qwen3", model("qwen3", "Qwen3ForCausalLM", **HEADS_OF_40), CHECKPOINTED[:3]),
        ("gemma2", model("gemma2", "Gemma2ForCausalLM", **HEADS_OF_40), CHECKPOINTED[:3]),
        ("phi3", model("phi3", "Phi3ForCausalLM", **GROUPED, pad_token_id=0), CHECKPOINTED[:3]),
        ("gpt_neox", model("gpt_neox", "GPTNeoXForCausalLM", **TEXT), CHECKPOINTED[:3]),
        ("falcon", model("falcon", "FalconForCausalLM", vocab_size=96, hidden_size=128, num_hidden_layers=3,
                         num_attention_heads=4), CHECKPOINTED[:3]),
        ("opt", model("opt", "OPTForCausalLM", vocab_size=96, hidden_size=128, ffn_dim=320, num_hidden_layers=3,
                      num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=128), CHECKPOINTED[:3]),
        ("mixtral", model("mixtral", "MixtralForCausalLM", **EXPERTS), CHECKPOINTED[:3]),
        ("deepseek_v3", model("deepseek_v3", "DeepseekV3ForCausalLM", **MLA), CHECKPOINTED[:3]),
        ("bert", model("bert", "BertForMaskedLM", **ENCODER), CHECKPOINTED[:3]),
        ("t5", model("t5", "T5ForConditionalGeneration", **T5), brief(attentions=("eager",), target=9, checkpoint=True)[:2]),
        ("vit", model("vit", "ViTForImageClassification", **VISION), [run("sdpa", "bf16", 5, None, checkpoint=True)]),
        ("mamba", model("mamba", "MambaForCausalLM", vocab_size=96, hidden_size=64, state_size=8, num_hidden_layers=3),
         [run("eager", "bf16", 3, 40, checkpoint=True)]),
    ],
    "amp": [
        ("llama", model("llama", "LlamaForCausalLM", **GROUPED), AMP),
        ("gpt2", model("gpt2", "GPT2LMHeadModel", **GPT2), AMP),
        ("bert", model("bert", "BertForMaskedLM", **ENCODER), AMP[:2]),
        ("t5", model("t5", "T5ForConditionalGeneration", **T5), [run("eager", "amp-bf16", 3, 40, target=9)]),
        ("vit", model("vit", "ViTForImageClassification", **VISION), [run("sdpa", "amp-bf16", 5, None)]),
        ("qwen3", model("qwen3", "Qwen3ForCausalLM", **HEADS_OF_40), AMP[:2]),
        ("gemma", model("gemma", "GemmaForCausalLM", **HEADS_OF_40), AMP[:2]),
        ("gpt_neox", model("gpt_neox", "GPTNeoXForCausalLM", **TEXT), AMP[:2]),
        ("mixtral", model("mixtral", "MixtralForCausalLM", **EXPERTS), AMP[:2]),
    ],
    "partly": [
        ("llama, LoRA", model("llama", "LlamaForCausalLM", **GROUPED), LORA),
        ("llama, frozen parts", model("llama", "LlamaForCausalLM", **GROUPED), FROZEN),
        ("gpt2, LoRA", model("gpt2", "GPT2LMHeadModel", **GPT2),
         [run("sdpa", dtype, 3, 40, lora={"r": 8, "target_modules": ["c_attn"]}) for dtype in ("bf16", "fp32")]),
    ],
    "loss": [
        ("llama, many words", model("llama", "LlamaForCausalLM", **{**GROUPED, "vocab_size": 1000}),
         [run("sdpa", dtype, 3, 41, **options) for dtype in ("bf16", "fp32") for options in
          ({}, {"num_items_in_batch": True}, {"outputs": "kept"}, {"outputs": "kept", "mask": "ones", "checkpoint": True})]),
        ("bert, many words", model("bert", "BertForMaskedLM", **{**ENCODER, "vocab_size": 1000}),
         [run("sdpa", "bf16", 3, 41), run("sdpa", "bf16", 3, 41, outputs="kept"), run("sdpa", "fp32", 3, 41)]),
        ("t5, many words", model("t5", "T5ForConditionalGeneration", **{**T5, "vocab_size": 1000}),
         [run("eager", "bf16", 3, 41, target=37), run("eager", "fp32", 3, 41, target=37)]),
    ],
}


def under_autocast():
    """One run of each family that agrees there: the first case of it, with its first attention and shape."""
    differ, seen = {"nemotron", "gpt_oss", "deepseek_v3", "dbrx", "bart", "swin", "mamba", "falcon_mamba", "deberta-v2", "siglip", "siglip_vision_model"}, set()
    for file in ("gpt2", "decoders", "gpt_neox", "experts", "phimoe", "encoders", "albert", "deberta", "t5", "vision", "dinov2", "siglip"):
        for name, config, runs in FILES[file]:
            if config["model_type"] in differ | seen:
                continue
            seen.add(config["model_type"])
            first = {key: runs[0][key] for key in ("attention", "batch", "sequence", "target") if key in runs[0]}
            yield f"{name}, autocast", config, [{**first, "dtype": "amp-bf16"}]
    for name, stem, sizes in (("starcoder2", "Starcoder2ForCausalLM", GROUPED), ("stablelm", "StableLmForCausalLM", GROUPED),
                              ("xlm-roberta", "XLMRobertaForMaskedLM", {**ENCODER, "pad_token_id": 1})):
        yield f"{name}, autocast", model(name, stem, **sizes), [run("sdpa", "amp-bf16", 3, 40)]
    yield "t5, no dropout, autocast", model("t5", "T5ForConditionalGeneration", **T5, dropout_rate=0.0), [
        run("eager", "amp-bf16", 3, 64, target=40), run("eager", "amp-bf16", 3, 40, target=9, checkpoint=True)]
    yield "falcon, one key head, padded, autocast", model("falcon", "FalconForCausalLM", vocab_size=96, hidden_size=128, num_hidden_layers=3, num_attention_heads=4), [
        run("sdpa", "amp-bf16", 3, 40, mask="padded")]
    yield "phi3, heads of 20, autocast", model("phi3", "Phi3ForCausalLM", **{**GROUPED, "hidden_size": 80}, pad_token_id=0), [
        run("sdpa", "amp-bf16", 3, 17, mask="padded")]
    yield "deepseek_v2, a long text, autocast", model("deepseek_v2", "DeepseekV2ForCausalLM", **MLA_V2), [
        run("sdpa", "amp-bf16", 3, 200), run("sdpa", "amp-bf16", 3, 200, checkpoint=True)]
    yield "mt5, autocast", model("mt5", "MT5ForConditionalGeneration", **T5), [run("eager", "amp-bf16", 3, 40, target=9)]


FILES["autocast"] = list(under_autocast())
