#include "planner/families/decoder.h"

#include <fmt/format.h>

namespace shardplan {

namespace {

Architecture read_sizes(ModelConfig& config, const Architecture& defaults) {
  Architecture a;
  a.vocabulary = config.size("vocab_size", defaults.vocabulary);
  a.hidden = config.size("hidden_size", defaults.hidden);
  if (defaults.intermediate > 0) {
    a.intermediate = config.size("intermediate_size", defaults.intermediate);
  } else {
    a.intermediate = config.optional_size("intermediate_size").value_or(4 * a.hidden);
  }
  a.layers = config.size("num_hidden_layers", defaults.layers);
  a.heads = config.size("num_attention_heads", defaults.heads);
  a.max_positions = config.size("max_position_embeddings", defaults.max_positions);
  return a;
}

std::uint64_t head_share(const ModelConfig& config, const Architecture& a) {
  if (a.hidden % a.heads != 0) {
    config.fail("num_attention_heads",
                fmt::format("expected a divisor of hidden_size, {}, found {}", a.hidden, a.heads));
  }
  return a.hidden / a.heads;
}

}  // namespace

Architecture read_decoder(ModelConfig& config, const Architecture& defaults) {
  Architecture a = read_sizes(config, defaults);
  a.kv_heads = a.heads;
  a.head_size = head_share(config, a);
  return a;
}

Architecture read_grouped_decoder(ModelConfig& config, const Architecture& defaults) {
  Architecture a = read_sizes(config, defaults);
  a.kv_heads = config.optional_size("num_key_value_heads").value_or(a.heads);
  if (a.heads % a.kv_heads != 0) {
    config.fail("num_key_value_heads",
                fmt::format("expected a divisor of num_attention_heads, {}, found {}", a.heads, a.kv_heads));
  }
  const auto head_size = config.optional_size("head_dim");
  a.head_size = head_size ? *head_size : head_share(config, a);
  return a;
}

AttentionSizes attention_sizes(const Architecture& architecture, bool rotary) {
  return {architecture.heads, architecture.kv_heads, architecture.head_size, rotary};
}

Modules split_attention(const std::string& name, const Architecture& a, bool bias) {
  const std::uint64_t queries = a.heads * a.head_size;
  const std::uint64_t keys = a.kv_heads * a.head_size;
  return below(name, join({linear("q_proj", a.hidden, queries, bias), linear("k_proj", a.hidden, keys, bias),
                           linear("v_proj", a.hidden, keys, bias), attention("attention", attention_sizes(a, true)),
                           linear("o_proj", queries, a.hidden, bias)}));
}

Modules gated_mlp(const std::string& name, const Architecture& a, const std::string& function, bool bias) {
  return below(name,
               join({linear("gate_proj", a.hidden, a.intermediate, bias),
                     linear("up_proj", a.hidden, a.intermediate, bias), activation("act_fn", function, a.intermediate),
                     multiply("gate", a.intermediate), linear("down_proj", a.intermediate, a.hidden, bias)}));
}

std::span<const Head> decoder_heads() {
  static constexpr Head heads[] = {
      {"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, false},
      {"Model", "", "", HeadOutput::none, false},
      {"ForSequenceClassification", "model", "score", HeadOutput::labels, false},
      {"ForTokenClassification", "model", "score", HeadOutput::labels, true},
      {"ForQuestionAnswering", "transformer", "qa_outputs", HeadOutput::span, true},
  };
  return heads;
}

}  // namespace shardplan
