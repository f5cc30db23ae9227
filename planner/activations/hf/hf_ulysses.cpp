#include "planner/activations/hf/hf_ulysses.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "planner/activations/torch_ops.h"

namespace shardplan {
namespace {

// Those that were compared with UlyssesSPAttentionHF: their attention is the one that it replaces.
constexpr std::array kFamilies{"llama", "mistral", "qwen2", "qwen3", "granite", "olmo2", "mixtral", "qwen3_moe"};

}  // namespace

std::string ulysses_refuses(const Model& model, const Setup& setup, const ClientSetup& client) {
  const std::uint64_t ranks = setup.parallel.context;
  const Architecture& a = model.architecture;
  if (client.passes_keys_on) return "accelerate's ring attention is not known (--cp with engine fsdp2)";
  if (std::find(kFamilies.begin(), kFamilies.end(), model.catalog.family) == kFamilies.end()) {
    return fmt::format("profile {} shares out no sequence of {} (--cp)", name(client.profile), model.catalog.family);
  }
  if (resolved_attention(client) == AttentionKind::eager) return "Ulysses has no eager attention (--cp)";
  if (client.sequence % ranks != 0) {
    return fmt::format("{} ranks (--cp) cannot share out {} tokens", ranks, client.sequence);
  }
  if (a.heads % ranks != 0 || (a.kv_heads % ranks != 0 && ranks % a.kv_heads != 0)) {
    return fmt::format("{} ranks (--cp) cannot share out {} heads, {} of keys", ranks, a.heads, a.kv_heads);
  }
  for (const ModuleRun& run : model.modules) {
    for (const Module& module : run.modules) {
      if (module.attention && module.attention->window != 0 && module.attention->window < client.sequence) {
        return "Ulysses drops the masks of windows (--cp)";
      }
    }
  }
  return {};
}

ClientSetup seen_by_a_rank(const Setup& setup, ClientSetup client) {
  if (setup.parallel.context == 1) return client;
  client.sequence /= setup.parallel.context;
  client.mask = MaskKind::none;
  return client;
}

}  // namespace shardplan

namespace shardplan::autograd {
namespace {

// [ranks, ...] to the same, each part to its rank. What comes back has to be in order first.
Value all_to_all(const Value& x, bool gradient_is_copied) {
  return x.tape().record("all_to_all", std::span(&x, 1), x.tape().allocate("all_to_all", x.shape(), x.dtype()), {},
                         [gradient_is_copied, shape = x.shape(), dtype = x.dtype()](Tape& tape, std::span<const Value>,
                                                                                    std::vector<Value>&) {
                           const Value in_order =
                               gradient_is_copied ? tape.allocate("contiguous", shape, dtype) : Value();
                           std::vector<Value> gradients;
                           gradients.push_back(tape.allocate("all_to_all backward", shape, dtype));
                           return gradients;
                         });
}

// [b, heads, s / ranks, d] to [b, heads / ranks, s, d]; with fewer heads than ranks each is sent to several.
Value to_heads(const Value& x, std::uint64_t ranks) {
  const std::uint64_t heads = std::max(x.size(1), ranks);
  Value sent = x;
  if (heads > x.size(1)) sent = repeat_heads(x, heads / x.size(1));
  sent = contiguous(view(sent, {ranks, x.size(0) * heads / ranks, x.size(2), x.size(3)}));
  const bool in_place = x.size(0) == 1 && heads == ranks;  // one text, one head
  const Value received = all_to_all(sent, !in_place);
  sent.reset();
  return view(received, {x.size(0), heads / ranks, x.size(2) * ranks, x.size(3)});
}

}  // namespace

Value attend_exchanged(const ForwardContext& context, const Value& q, const Value& k, const Value& v,
                       const AttentionCall& call) {
  Tape& tape = q.tape();
  const std::uint64_t ranks = context.setup.parallel.context;
  const std::uint64_t batch = q.size(0);
  const std::uint64_t tokens = q.size(2);
  Value mixed;
  {
    std::vector<Value> positions;
    for (std::uint64_t i = 0; i < ranks; ++i)
      positions.push_back(tape.allocate("positions", {batch, tokens}, DType::i64));
    positions.push_back(tape.allocate("positions", {batch, ranks * tokens}, DType::i64));
    std::array heads{to_heads(q, ranks), to_heads(k, ranks), to_heads(v, ranks)};
    for (Value& x : heads) {
      if (batch > 1 || x.size(1) > 1) x = contiguous(x);
    }
    mixed = transpose(
        scaled_dot_product_attention(heads[0], heads[1], heads[2], {.causal = call.causal, .dropout = call.dropout}));
    // Of several texts the parts of a rank are not next to each other.
    const Shape parts{ranks, tokens, batch, q.size(1) / ranks * q.size(3)};
    Value sent = batch > 1 ? contiguous(view(mixed, parts)) : view(mixed, parts);
    mixed = all_to_all(sent, true);
  }
  const Shape joined{batch, tokens, q.size(1) * q.size(3)};
  mixed = contiguous(view(mixed, joined));
  return batch > 1 ? contiguous(mixed) : mixed;  // the layer's own .contiguous()
}

}  // namespace shardplan::autograd
