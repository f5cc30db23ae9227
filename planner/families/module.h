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
  convolution,
  layer_norm,
  rms_norm,
  group_norm,
  attention,   // softmax(q k^T) v; its projections are linear modules of their own
  scan,        // a state-space recurrence over the sequence; its projections likewise
  activation,  // element by element
  multiply,    // element by element: the gate of a gated MLP
  router,      // a linear module that chooses experts for each token
  dropout,     // keeps which elements it let through
  residual,    // how parts are added to what came in, where a family has more than one way
  parameter,   // a tensor that a module owns besides its submodules: a token, a scale, a table of positions
};
std::string_view name(ModuleKind kind);

struct AttentionSizes {
  std::uint64_t heads = 0;
  std::uint64_t kv_heads = 0;  // each serves heads / kv_heads query heads
  std::uint64_t head_size = 0;
  bool rotary = false;       // q and k are rotated by position first
  bool interleaved = false;  // neighbouring features are rotated as pairs, not those of two halves
  // Features of one head's value; 0 where they are head_size (they differ in multi-head latent attention).
  std::uint64_t value_size = 0;
  std::uint64_t rotary_size = 0;  // features of a head that are rotated; 0: all of them
  // Tokens that a token sees, itself included; 0: all before it. Layers whose number `whole` says yes to see all.
  std::uint64_t window = 0;
  std::vector<bool> whole{};
  bool operator==(const AttentionSizes&) const = default;
};

// Of modules inside a mixture of experts: a token passes `chosen` of `experts` equal ones.
struct Routing {
  std::uint64_t experts = 0;
  std::uint64_t chosen = 0;
  bool fused = false;       // one module holds all experts, and its features are those of all of them
  bool grouped = false;     // a token's experts are of the best groups of experts alone
  bool normalized = false;  // the weights of a token's experts are divided by their sum
  // What the routers of all layers say is kept to the loss, which has a term of it (output_router_logits).
  bool balanced = false;
  bool operator==(const Routing&) const = default;
};

struct Module {
  std::string name;  // below the block's, or below the model's outside the blocks
  ModuleKind kind = ModuleKind::linear;
  std::uint64_t input = 0;   // features of one token that go in; rows of an embedding; channels of a convolution
  std::uint64_t output = 0;  // features of one token that come out
  // Named below the module: "weight", "bias". The one tensor of a parameter has no name but the module's.
  std::vector<Tensor> tensors;
  std::optional<AttentionSizes> attention;  // of an attention
  std::string function;                     // of an activation: "silu", "gelu_new"; of a residual: "parallel"
  double rate = 0;                          // of a dropout
  std::uint64_t chunk = 0;                  // of a scan: tokens that it computes at once; 0: one
  std::optional<Routing> routing;           // inside an expert
  bool operator==(const Module&) const = default;
};

using Modules = std::vector<Module>;

// The name of one of a module's tensors, as the module's own is: below the block's.
std::string name_of_tensor(const Module& module, const Tensor& tensor);

Modules embedding(std::string name, std::uint64_t rows, std::uint64_t width);
// Weight [output, input].
Modules linear(std::string name, std::uint64_t input, std::uint64_t output, bool bias);
// GPT-2's Conv1D: a linear module with its weight transposed, [input, output], and always a bias.
Modules transposed_linear(std::string name, std::uint64_t input, std::uint64_t output);
// Weight [output, input / groups, kernel...]: one, two or three kernel sizes.
Modules convolution(std::string name, std::uint64_t input, std::uint64_t output, const Shape& kernel, bool bias,
                    std::uint64_t groups = 1);
Modules layer_norm(std::string name, std::uint64_t width, bool bias = true);  // weight and bias
Modules plain_norm(std::string name, std::uint64_t width);                    // a LayerNorm without tensors
Modules rms_norm(std::string name, std::uint64_t width);                      // weight
Modules group_norm(std::string name, std::uint64_t channels);                 // weight and bias
Modules attention(std::string name, const AttentionSizes& sizes);
// `channels` features of a token with `state` features of state each.
Modules scan(std::string name, std::uint64_t channels, std::uint64_t state);
Modules activation(std::string name, std::string function, std::uint64_t width);
Modules multiply(std::string name, std::uint64_t width);
// None where the rate is 0: such a layer is its input.
Modules dropout(std::string name, double rate);
// Called "residual". `way`: "parallel", attention and MLP read the same features; "normed", a part's input is added behind
// its norm; "swin", what a part puts out is normed; "fp32", what is carried from block to block is of that dtype.
Modules residual(std::string way);
// Weight [experts, input].
Modules router(std::string name, std::uint64_t input, std::uint64_t experts, bool bias);
// The tensor is called `name` itself.
Modules parameter(std::string name, Shape shape);

// The weight of the one module in `modules` is the tensor `owner` (its whole name).
Modules tied(Modules modules, std::string owner);
// Its weight and its bias are `weight` and `bias`.
Modules tied(Modules modules, std::string weight, std::string bias);
// The same modules with tensors that are never trained: a table of sines, a bias that balances experts.
Modules frozen(Modules modules);
// The same modules as part of experts.
Modules routed(Modules modules, const Routing& routing);

// One list of several, in order.
Modules join(std::initializer_list<Modules> parts);
// The same modules one level down: each name behind "prefix.".
Modules below(std::string_view prefix, Modules modules);
// `modules` below name.0, name.1, ... name.(count - 1).
Modules repeated(std::string_view name, std::uint64_t count, const Modules& modules);

}  // namespace shardplan
