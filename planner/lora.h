// Low-rank adapters, and quantised storage of what stays frozen: catalogs in, catalogs out.
//
// add_lora gives each target, a linear module y = W x with W [out, in], two trainable matrices beside it, A [r, in] and
// B [out, r], so that y = W x + (alpha / r) B A x, and freezes everything else (Hu et al., arXiv 2106.09685, sec. 4.1).
// Names and sizes are peft's (tuners/lora/layer.py), without its prefix "base_model.model." and its "base_layer":
//   <module>.lora_A.default.weight [r, in], <module>.lora_B.default.weight [out, r]
//   <module>.lora_embedding_A.default [r, rows], <module>.lora_embedding_B.default [width, r]   for an embedding
//   <module>.modules_to_save.default.<tensor>   a trainable copy beside the frozen original (utils/other.py)
//
// quantize stores the frozen weights of linear modules as bitsandbytes does; heads and embeddings stay as they are
// (transformers, integrations/bitsandbytes.py get_keys_to_not_convert):
//   nf4   4 bits each, with double quantisation (Dettmers et al., arXiv 2305.14314, sec. 3): for each 64 elements a scale
//         in 8 bits, for each 256 scales one in fp32: 8/64 + 32/(64 x 256) = 0.127 bits per parameter; and for each tensor
//         the 16 fp32 values that the codes stand for and one fp32 mean of the scales (functional.py quantize_4bit)
//   nf4-single  the same without double quantisation: for each 64 elements an fp32 scale (compress_statistics=False)
//   int8  8 bits each, and an fp32 scale for each output (LLM.int8(), arXiv 2208.07339; nn/modules.py Int8Params, SCB)
// Scales are frozen tensors of their own behind the weight, marked Tensor::scales: bytes, but no parameters.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/catalog.h"

namespace shardplan {

struct Lora {
  std::uint64_t rank = 0;  // r; more is a more able adapter, and bytes in proportion
  // Globs (base/glob.h) for whole names of modules, or for their ends after a dot, as peft's target_modules:
  // "q_proj" is every module called so. "all-linear" is every linear module but the head that says
  // words, or a classifier of texts.
  std::vector<std::string> targets{};
  std::vector<std::string> modules_to_save{};
  // Of the adapters; empty: the policy's parameter dtype. peft makes them fp32 beside 16-bit weights unless it is told
  // otherwise (autocast_adapter_dtype of get_peft_model).
  std::optional<DType> dtype{};
  bool operator==(const Lora&) const = default;
};

// Throws ConfigError for a rank of 0, and, with the names that there are, for a glob that matches no module.
void add_lora(Catalog& catalog, const Lora& lora);

enum class Quantization : std::uint8_t { nf4, nf4_single, int8 };
std::string_view name(Quantization quantization);

// Of the catalog of one kind of rank: each rank quantises what it holds. Weights that are trained stay as they are. `heads`:
// the head too, as programs do that put a class of their own in place of every nn.Linear (Lightning's BitsandbytesPrecision).
void quantize(Catalog& catalog, Quantization quantization, bool heads = false);

// Whether a name (of a module, or a tensor of one) says that it is a table of embeddings.
bool names_embedding(std::string_view name);

// Whether add_lora or quantize has been at work.
bool has_adapters(const Catalog& catalog);
bool has_quantised(const Catalog& catalog);
// Whether any weight is frozen that quantize() would store in fewer bits. Throws nothing.
bool has_quantizable(const Catalog& catalog);

}  // namespace shardplan
