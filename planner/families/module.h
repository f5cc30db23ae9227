// Modules: what a model is made of, as data.
//
// A module has a name, a kind, the sizes of what flows through it, and the tensors that it owns, named and shaped as in
// the model's state dict. Kinds without tensors (attention itself, an activation function) are modules too: what they
// keep for backward is as real as a weight.
//
// Every constructor returns Modules, a list, so that a block is a list of such lists, in the order of the state dict.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/catalog.h"

namespace shardplan {

enum class ModuleKind : std::uint8_t {
  embedding,  // rows x width; saves indices
  linear,     // y = x W^T + b
  layer_norm,
  rms_norm,
  attention,   // softmax(q k^T) v; its projections are linear modules of their own
  activation,  // element by element
  multiply,    // element by element: the gate of a gated MLP
};
std::string_view name(ModuleKind kind);

struct AttentionSizes {
  std::uint64_t heads = 0;
  std::uint64_t kv_heads = 0;  // each serves heads / kv_heads query heads
  std::uint64_t head_size = 0;
  bool rotary = false;  // q and k are rotated by position first
  bool operator==(const AttentionSizes&) const = default;
};

struct Module {
  std::string name;  // below the block's, or below the model's outside the blocks
  ModuleKind kind = ModuleKind::linear;
  std::uint64_t input = 0;                  // features of one token that go in; rows of an embedding
  std::uint64_t output = 0;                 // features of one token that come out
  std::vector<Tensor> tensors;              // named below the module: "weight", "bias"
  std::optional<AttentionSizes> attention;  // of an attention
  std::string function;                     // of an activation: "silu", "gelu_new"
  bool operator==(const Module&) const = default;
};

using Modules = std::vector<Module>;

Modules embedding(std::string name, std::uint64_t rows, std::uint64_t width);
// Weight [output, input].
Modules linear(std::string name, std::uint64_t input, std::uint64_t output, bool bias);
// GPT-2's Conv1D: a linear module with its weight transposed, [input, output], and always a bias.
Modules transposed_linear(std::string name, std::uint64_t input, std::uint64_t output);
Modules layer_norm(std::string name, std::uint64_t width);  // weight and bias
Modules rms_norm(std::string name, std::uint64_t width);    // weight
Modules attention(std::string name, const AttentionSizes& sizes);
Modules activation(std::string name, std::string function, std::uint64_t width);
Modules multiply(std::string name, std::uint64_t width);

// The weight of the one module in `modules` is the tensor `owner` (its whole name).
Modules tied(Modules modules, std::string owner);

// One list of several, in order.
Modules join(std::initializer_list<Modules> parts);
// The same modules one level down: each name behind "prefix.".
Modules below(std::string_view prefix, Modules modules);

}  // namespace shardplan
