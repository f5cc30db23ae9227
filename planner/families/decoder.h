// What transformers have in common: sizes, attention, feed-forward layers, experts.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "planner/families/family.h"
#include "planner/families/model.h"
#include "planner/families/model_config.h"

namespace shardplan {

// Reads the sizes of a transformer whose heads share out its width; `defaults` are those of its class. Absent or null,
// intermediate_size is 4 x hidden_size where the class has no number for it (0). Throws ConfigError where
// num_attention_heads does not divide hidden_size.
Architecture read_decoder(ModelConfig& config, const Architecture& defaults);

// The same for grouped queries: num_key_value_heads and head_dim. Absent, they are the class's where it has numbers
// for them; else, and where they are null, num_attention_heads and hidden_size / num_attention_heads, which has to be
// whole only then. Throws ConfigError where num_key_value_heads does not divide num_attention_heads.
Architecture read_grouped_decoder(ModelConfig& config, const Architecture& defaults);

// Grouped queries whose heads share out the width, whatever the file says of head_dim.
Architecture read_grouped_width(ModelConfig& config, const Architecture& defaults);

AttentionSizes attention_sizes(const Architecture& architecture, bool rotary);

// A window of so many tokens, 0 for none, and which layers see all (AttentionSizes).
struct AttentionWindow {
  std::uint64_t tokens = 0;
  std::vector<bool> whole{};
};
// sliding_window, for all layers; absent, it is the class's.
AttentionWindow read_window(ModelConfig& config, std::uint64_t class_default);
// Which layers see all by layer_types, "full_attention" or "sliding_attention" for each; nothing where the file has no list.
// Throws ConfigError where it says something else, or of another number of layers.
std::optional<std::vector<bool>> read_whole_layers(const ModelConfig& config, std::uint64_t layers);
// sliding_window, for the layers that layer_types says; absent, for those whose number `whole` says no to. Throws ConfigError
// where layers in a window have none.
AttentionWindow read_windows(ModelConfig& config, std::uint64_t class_default, std::uint64_t layers,
                             const std::function<bool(std::uint64_t)>& whole);
// Qwen's: only where use_sliding_window says so, for the layers from max_window_layers on if there is no list.
AttentionWindow read_qwen_windows(ModelConfig& config, std::uint64_t layers, std::uint64_t first_by_default);
// The same modules with every attention in this window.
Modules windowed(Modules modules, const AttentionWindow& window);
// With a part of each head rotated: partial_rotary_factor.
Modules partly_rotated(const ModelConfig& config, Modules modules, double class_default);

struct AttentionOptions {
  bool bias = false;         // of the projections to queries, keys and values
  bool output_bias = false;  // of the projection from the heads
  bool rotary = true;
  std::string_view output = "o_proj";
  Modules norms{};     // of queries and keys, after the projections in the state dict
  double dropout = 0;  // of the probabilities
};

// q_proj, k_proj, v_proj, attention, its dropout, the projection from the heads, norms.
Modules split_attention(std::string_view name, const Architecture& architecture, const AttentionOptions& options);

// Where the file has clip_qkv: what queries, keys and values are held within.
Modules clipped_projections(const ModelConfig& config, const Architecture& architecture);

// down(act(gate(x)) * up(x)): gate_proj, up_proj, down_proj.
Modules gated_mlp(std::string_view name, std::uint64_t hidden, std::uint64_t intermediate, const std::string& function,
                  bool bias);

// down(act(up(x))).
Modules plain_mlp(std::string_view name, const std::string& up, const std::string& down, std::uint64_t hidden,
                  std::uint64_t intermediate, const std::string& function, bool bias);

// RMSNorm before attention and before the MLP: input_layernorm, post_attention_layernorm.
Modules norms_before(const Architecture& architecture);

// Reads how many of `experts` a token passes; throws ConfigError for more than there are.
Routing read_routing(ModelConfig& config, std::string_view attribute, std::uint64_t class_default,
                     std::uint64_t experts);

// name.0, name.1, ...: one gated MLP for each expert.
Modules gated_experts(std::string_view name, const Routing& routing, std::uint64_t hidden, std::uint64_t intermediate,
                      const std::string& function);

// The linear modules of all experts with their weights in one tensor of this name and shape, for fused routing.
Modules fused_experts(std::string name, const Routing& routing, std::uint64_t input, std::uint64_t output, Shape shape);

// ForCausalLM, Model, ForSequenceClassification, ForTokenClassification, ForQuestionAnswering, as Llama and its kin
// have them.
std::span<const Head> decoder_heads();
// The same with the base model of ForQuestionAnswering where that of the others is, as Mistral and its kin have them.
std::span<const Head> mistral_heads();

}  // namespace shardplan
