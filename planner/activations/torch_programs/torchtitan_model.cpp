#include "planner/activations/torch_programs/torchtitan_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/checked.h"
#include "planner/activations/stage_ends.h"
#include "planner/activations/torch_ops.h"
#include "planner/activations/torch_programs/torch_context_parallel.h"
#include "planner/activations/torch_programs/torch_decoder.h"
#include "planner/activations/torch_programs/torch_tensor_parallel.h"
#include "planner/lora.h"
#include "planner/units.h"

namespace shardplan {
namespace autograd {
namespace {

// apply_rotary_emb on [b, s, heads, d]: complex numbers of two fp32 each; both are there before either is cast back.
void rotate(Value& q, Value& k) {
  const auto complex = [](const Value& x) { return to(x, DType::f32); };
  const auto turned = [](const Value& x) { return mul(x, x.tape().outside({1, x.size(1), 1, x.size(3)}, DType::f32)); };
  const Value complex_q = complex(q);
  const Value complex_k = complex(k);
  const Value turned_q = turned(complex_q);
  const Value turned_k = turned(complex_k);
  const Value narrow_q = to(turned_q, q.dtype());
  k = to(turned_k, k.dtype());
  q = narrow_q;
}

// repeat_kv: of one key head a view, of more a copy.
Value repeated(const Value& x, std::uint64_t heads) {
  if (x.size(2) == heads) return x;
  const Shape shape{x.size(0), x.size(1), heads, x.size(3)};
  return x.size(2) == 1 ? expand(x, shape) : copied(x, shape);
}

// How a text and its layers are shared out.
struct Shares {
  std::uint64_t tensor = 1;
  ContextRing ring{};
};

Shares shares_of(const ForwardContext& context) {
  const Parallelism& parallel = context.setup.parallel;
  return {parallel.tensor, {parallel.context, context.client.context_gathers}};
}

// F.scaled_dot_product_attention, which context parallelism puts its own in the place of.
Value mixed_values(const Value& q, const Value& k, const Value& v, const ContextRing& ring) {
  if (ring.ranks > 1) return ring_attention(q, k, v, ring);
  return scaled_dot_product_attention(q, k, v, {.mask = {}, .causal = true});
}

// Attention.forward. Of the tokens this rank's heads.
Value attention_of(const UnitView& block, const Value& x, const Shares& shares) {
  const std::uint64_t ranks = shares.tensor;
  const AttentionSizes& sizes = attention_sizes_of(block);
  const auto heads_of = [&](const char* name, std::uint64_t heads) {
    return view(adapted_linear(block, name, x), {x.size(0), x.size(1), heads / ranks, sizes.head_size});
  };
  Value q = heads_of("self_attn.q_proj", sizes.heads);
  Value k = heads_of("self_attn.k_proj", sizes.kv_heads);
  Value v = heads_of("self_attn.v_proj", sizes.kv_heads);
  rotate(q, k);
  const Value keys = repeated(k, sizes.heads / ranks);
  const Value values = repeated(v, sizes.heads / ranks);
  q = transpose(q);
  k = transpose(keys);
  v = transpose(values);
  Value mixed = mixed_values(q, k, v, shares.ring);
  mixed = view(transpose(mixed), {x.size(0), x.size(1), sizes.heads / ranks * sizes.head_size});
  return adapted_linear(block, "self_attn.o_proj", mixed);
}

// A norm reads this rank's part of the text, the layer behind it all of it, and puts out a sum of which each rank gets its part
// (apply_tp).
template <typename Layer>
Value normed_layer(const Parameters& norm, const Value& x, std::uint64_t ranks, Layer&& layer) {
  const Value normed = fp32_rms_norm(norm, x, ranks);
  const Value text = gathered(normed, ranks);
  return scattered(layer(text), ranks);
}

Value whole_block(const UnitView& block, const Value& input, const Shares& shares) {
  const std::uint64_t ranks = shares.tensor;
  const Value attended = [&] {
    const Value attention = normed_layer(block["input_layernorm"], input, ranks,
                                         [&](const Value& x) { return attention_of(block, x, shares); });
    return add(input, attention);
  }();
  const Value inner = normed_layer(block["post_attention_layernorm"], attended, ranks,
                                   [&](const Value& x) { return gated_feed_forward(block, x); });
  return add(attended, inner);
}

// _custom_policy: every second product is computed again.
Tape::Policy op_policy() {
  return [products = 0](std::string_view operation) mutable {
    if (operation == "linear") return ++products % 2 == 1;
    return operation == "flash attention" || operation == "efficient attention" || operation == "reduce_scatter";
  };
}

// Its number among those of the rank's part, which are counted from 1 on.
std::uint64_t place_of(const ForwardContext& context, const UnitView& block) {
  const auto& runs = context.held.runs;
  const auto first = std::find_if(runs.begin(), runs.end(), [](const UnitRun& run) { return run.numbered; });
  return block.number() - first->first_number + 1;
}

Value torchtitan_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const auto whole = [block, shares = shares_of(context)](const Value& x) { return whole_block(block, x, shares); };
  const ClientSetup& client = context.client;
  const bool every = client.recompute == RecomputeKind::every;
  if (client.recompute == RecomputeKind::none || (every && place_of(context, block) % client.recompute_every != 0)) {
    return whole(input);
  }
  if (client.recompute != RecomputeKind::selective) return context.tape.checkpoint(whole, input);
  return context.tape.selective_checkpoint(whole, input, op_policy);
}

// What comes out at the head: logits of this rank's words, or of all.
Value logits_of(const ForwardContext& context, const UnitView& head, const Value& hidden) {
  const std::uint64_t ranks = context.setup.parallel.tensor;
  Value logits = adapted_linear(head, "lm_head", gathered(hidden, ranks));
  if (context.client.loss_parallel) return logits;
  return gathered_features(logits, ranks, context.model.architecture.vocabulary);
}

// loss_fn of train.py.
Value loss_of(const ForwardContext& context, const Value& logits) {
  const Value rows = view(logits, {logits.size(0) * logits.size(1), logits.size(2)});
  const Value wide = to(rows, DType::f32);
  const bool parallel = context.setup.parallel.tensor > 1 && context.client.loss_parallel;
  return parallel ? parallel_cross_entropy(wide) : cross_entropy(wide);
}

// What comes out: the loss, or on a stage that has none what the next one gets.
Value torchtitan_forward(ForwardContext& context) {
  Value hidden = decoder_features(context, torchtitan_block);
  const auto head = unit_with(context, "lm_head");
  if (!head) return sent(hidden, true);
  const Purpose before = context.tape.set_purpose(Purpose::loss);
  const Value logits = logits_of(context, *head, hidden);
  hidden.reset();
  const Value loss = loss_of(context, logits);
  context.tape.keep(loss);  // train.py reports it
  Value end = sent(loss, true);
  context.tape.set_purpose(before);
  return end;
}

}  // namespace
}  // namespace autograd

namespace {

// What does not divide.
std::string uneven(const Model& model, const Parallelism& parallel, std::uint64_t sequence) {
  const std::uint64_t pieces = parallel.context > 1 ? 2 * parallel.context : 1;  // of each rank two
  if (sequence % pieces != 0 || sequence / parallel.context % parallel.tensor != 0) {
    std::string cuts;
    if (pieces > 1) cuts = fmt::format("a text into {} equal pieces for --cp {}", pieces, parallel.context);
    if (parallel.tensor > 1) {
      cuts += fmt::format("{} into {} for --tp {}", pieces > 1 ? ", and a rank's part of it" : "a text",
                          parallel.tensor, parallel.tensor);
    }
    return fmt::format("profile torchtitan cuts {}: not {} tokens", cuts, sequence);
  }
  for (const ModuleRun& run : model.modules) {
    for (const Module& module : run.modules) {
      if (!module.attention || module.attention->kv_heads % parallel.tensor == 0) continue;
      return fmt::format(
          "profile torchtitan gives each of --tp {} ranks heads of keys and values of its own: {} has {}",
          parallel.tensor, model.catalog.name, module.attention->kv_heads);
    }
  }
  return {};
}

// What parallelize_llama knows no sharding of.
std::string unsharded(const Catalog& held) {
  if (has_adapters(held)) return "profile torchtitan has no adapters (--lora-rank) under --tp";
  if (has_quantised(held)) return "profile torchtitan has no quantised weights (--quantize) under --tp";
  return {};
}

// What the ring's one kernel here does not take.
std::string no_ring(const Model& model, const Policy& policy) {
  constexpr std::uint64_t kMostFeatures = 256;
  const std::uint64_t features = model.architecture.head_size;
  if (bits(policy.compute) == 16 && features <= kMostFeatures && features % 8 == 0) return {};
  return fmt::format(
      "profile torchtitan knows --cp by FlashAttention alone: 16 bits, and heads of at most {} features in whole "
      "eights, not {} in {}",
      kMostFeatures, features, name(policy.compute));
}

bool has_unit(const Catalog& held, std::string_view name) {
  return std::any_of(held.runs.begin(), held.runs.end(), [&](const UnitRun& run) { return run.name == name; });
}

}  // namespace

std::string torchtitan_refuses(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client) {
  if (is_of_flows(client.recompute)) return "profile torchtitan has no flows, so neither recompute invert nor adjoint";
  if (client.loss != LossKind::eager) return "profile torchtitan has its eager loss alone (--loss eager)";
  if (setup.parallel.expert > 1) return "profile torchtitan has no experts (--ep)";
  if (resolved_schedule(setup.parallel) == PipelineSchedule::dualpipe)
    return "profile torchtitan has no dualpipe (--schedule)";
  if (std::string why = torch_decoder_refuses(model, setup, "torchtitan"); !why.empty()) return why;
  if (std::string why = uneven(model, setup.parallel, client.sequence); !why.empty()) return why;
  if (setup.parallel.tensor > 1) {
    if (std::string why = unsharded(held); !why.empty()) return why;
  }
  return setup.parallel.context > 1 ? no_ring(model, setup.policy) : std::string();
}

void run_torchtitan(autograd::Tape& tape, const Model& model, const Catalog& held, const Setup& setup,
                    const ClientSetup& client, std::vector<SavedByUnit>* saved) {
  autograd::ForwardContext context{tape, model, held, setup, client};
  context.unfolded = !tape.options().folds;
  context.never_recomputes = true;  // its blocks see to that
  autograd::Value end = autograd::torchtitan_forward(context);
  if (saved != nullptr) *saved = saved_tensors(tape);
  const autograd::Value gradient = tape.allocate("gradient", end.shape(), end.dtype());
  tape.backward(std::move(end), gradient);
  tape.release_kept();
}

std::vector<ClientTerm> torchtitan_client_terms(const Model& model, const Catalog& held, const Setup& setup,
                                                const ClientSetup& client) {
  const Parallelism& parallel = setup.parallel;
  const std::uint64_t texts = checked_multiply(client.micro_batch, setup.accumulation);
  const std::uint64_t tokens = checked_multiply(texts, client.sequence);
  std::vector<ClientTerm> terms;
  // Complex numbers of two fp32 each, in every part of the model that the rank has.
  const Bytes table = bytes_for(DType::f32, checked_multiply(client.sequence, model.architecture.head_size));
  terms.push_back({"rotary table", parallel.virtual_stages * table, true, true,
                   "torchtitan/models/llama/model.py, precompute_freqs_cis"});
  if (parallel.context > 1) {
    terms.push_back({"rotary table as it was", table, false, true,
                     "torch/distributed/tensor/experimental/_context_parallel/_attention.py, context_parallel"});
  }
  terms.push_back({"batch: tokens and labels", 2 * bytes_for(DType::i64, tokens), true, true, "torchtitan train.py"});
  if (parallel.pipeline == 1) return terms;
  const std::uint64_t words = model.architecture.vocabulary;
  const std::uint64_t own_words = divide_up(words, parallel.tensor);
  if (client.waiting_gradients && words > own_words && has_unit(held, kEmbeddingUnit)) {
    // The engine counts those of this rank's words.
    const std::uint64_t others = checked_multiply(words - own_words, model.architecture.hidden);
    terms.push_back({"gradient of other ranks' words", bytes_for(*client.waiting_gradients, others), false, true,
                     "torch/distributed/tensor/_ops/_embedding_ops.py, embedding_dense_backward: Replicate",
                     autograd::Purpose::gradient});
  }
  if (has_unit(held, kHeadUnit)) {
    const std::uint64_t logits = checked_multiply(tokens / parallel.context, client.loss_parallel ? own_words : words);
    terms.push_back({"logits of the step's micro-batches", bytes_for(setup.policy.parameter, logits), true, true,
                     "torch/distributed/pipelining/stage.py, output_chunks", autograd::Purpose::loss});
  }
  return terms;
}

}  // namespace shardplan
