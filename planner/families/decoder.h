// What decoder-only transformers have in common.
#pragma once

#include <span>
#include <string>

#include "planner/families/family.h"
#include "planner/families/model.h"
#include "planner/families/model_config.h"

namespace shardplan {

// Reads the sizes of a decoder whose heads share out its width; `defaults` are those of its class. Absent or null,
// intermediate_size is 4 x hidden_size where the class has no number for it (0). Throws ConfigError where
// num_attention_heads does not divide hidden_size.
Architecture read_decoder(ModelConfig& config, const Architecture& defaults);

// The same for grouped queries: absent or null, num_key_value_heads is num_attention_heads, and head_dim is
// hidden_size / num_attention_heads, which has to be whole only then. Throws ConfigError where num_key_value_heads does
// not divide num_attention_heads.
Architecture read_grouped_decoder(ModelConfig& config, const Architecture& defaults);

AttentionSizes attention_sizes(const Architecture& architecture, bool rotary);

// q_proj, k_proj, v_proj, attention, o_proj.
Modules split_attention(const std::string& name, const Architecture& architecture, bool bias);

// down(act(gate(x)) * up(x)): gate_proj, up_proj, down_proj.
Modules gated_mlp(const std::string& name, const Architecture& architecture, const std::string& function, bool bias);

// ForCausalLM, Model, ForSequenceClassification, ForTokenClassification, ForQuestionAnswering, as Llama and its kin
// have them.
std::span<const Head> decoder_heads();

}  // namespace shardplan
