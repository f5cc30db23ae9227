#include "planner/activations/litgpt/litgpt_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "planner/activations/litgpt/litgpt_layers.h"
#include "planner/activations/torch_ops.h"
#include "planner/lora.h"

namespace shardplan {
namespace {

using autograd::ForwardContext;
using autograd::Layout;
using autograd::Purpose;
using autograd::Tape;
using autograd::UnitView;
using autograd::Value;

constexpr std::uint64_t kChunk = 128;  // lm_head_chunk_size, and chunked_cross_entropy's chunk_size

// nn.Embedding; with quantised weights today's code puts bitsandbytes' StableEmbedding in its place, which is trained.
Value embedded(ForwardContext& context, const UnitView& unit) {
  Tape& tape = context.tape;
  const Value tokens = tape.outside({context.batch(), context.tokens()}, DType::i64);
  const Value weight = unit["transformer.wte"].weight;
  if (context.client.litgpt == LitGptVersion::current && has_quantised(context.held)) {
    const Value trained = tape.parameter("transformer.wte.stable.weight", weight.shape(), weight.dtype(), true);
    const Shape width{weight.size(1)};
    return layer_norm(embedding(tokens, trained),
                      tape.parameter("transformer.wte.norm.weight", width, weight.dtype(), true),
                      tape.parameter("transformer.wte.norm.bias", width, weight.dtype(), true));
  }
  const Value x = embedding(tokens, weight);
  return has_module(context, "transformer.scale") ? scale(x) : x;
}

Value capped(const ForwardContext& context, const Value& logits) {
  if (!has_module(context, "logits_softcap")) return logits;
  Value value = scale(logits);
  value = unary_of_output("tanh", value);
  return scale(value);
}

// Autocast ends with the model's forward; Fabric casts what comes out to fp32, in 16-bit precision too (convert_output of
// lightning/fabric/plugins/precision). All of it is there twice for a moment.
void given_back(ForwardContext& context, std::vector<Value>& logits) {
  context.tape.end_autocast();
  std::vector<Value> wide;
  for (const Value& chunk : logits) wide.push_back(to(chunk, DType::f32));
  logits = std::move(wide);
}

std::vector<std::uint64_t> chunk_sizes(std::uint64_t total) {
  std::vector<std::uint64_t> sizes;
  for (std::uint64_t done = 0; done < total; done += kChunk) sizes.push_back(std::min(kChunk, total - done));
  return sizes;
}

// Losses of all chunks, one after the other, and their mean.
Value mean_of(Tape& tape, const std::vector<Value>& chunks) {
  std::uint64_t tokens = 0;
  std::vector<Value> losses;
  for (const Value& chunk : chunks) {
    tokens += chunk.size(0);
    losses.push_back(autograd::cross_entropy(chunk));
  }
  const Value all = tape.record("cat", losses, tape.allocate("cat", {tokens}, losses[0].dtype()), {},
                                [count = losses.size()](Tape&, std::span<const Value>, std::vector<Value>& incoming) {
                                  return std::vector<Value>(count, incoming[0].viewed({}));
                                });
  return total(all);
}

// Parts of x along the sequence; their gradients are joined.
std::vector<Value> parts_of(const Value& x) {
  std::vector<Value> parts;
  for (const std::uint64_t size : chunk_sizes(x.size(1))) {
    parts.push_back(
        x.viewed({x.size(0), size, x.size(2)}).laid_out(x.size(0) > 1 ? Layout::with_gaps : Layout::in_order));
  }
  return x.tape().record("split", std::span(&x, 1), std::move(parts), {},
                         [shape = x.shape(), dtype = x.dtype()](Tape& t, std::span<const Value>, std::vector<Value>&) {
                           std::vector<Value> gradients;
                           gradients.push_back(t.allocate("split backward", shape, dtype));
                           return gradients;
                         });
}

// finetune/lora.py: the head on 128 tokens at a time; the last token of all is left out of the loss.
Value chunked_head(ForwardContext& context, const UnitView& unit, const Value& x, std::vector<Value>& logits) {
  for (const Value& part : parts_of(x)) {
    const Value dense = part.layout() == Layout::with_gaps ? copied(part, part.shape()) : part;
    logits.push_back(capped(context, litgpt_linear(unit, "lm_head", dense)));
  }
  given_back(context, logits);
  std::vector<Value> chunks;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    Value chunk = logits[i];
    if (i + 1 == logits.size()) {
      const Shape rest{chunk.size(0), chunk.size(1) - 1, chunk.size(2)};
      if (rest[1] == 0) continue;
      chunk = slice(chunk, rest).laid_out(chunk.size(0) > 1 ? Layout::with_gaps : Layout::in_order);
    }
    chunks.push_back(view(chunk, {chunk.size(0) * chunk.size(1), chunk.size(2)}));
  }
  return mean_of(context.tape, chunks);
}

// finetune/full.py: logits of all tokens, whose cross entropy is taken of 128 rows at a time.
Value whole_head(ForwardContext& context, const UnitView& unit, const Value& x, std::vector<Value>& logits) {
  logits.push_back(capped(context, litgpt_linear(unit, "lm_head", x)));
  given_back(context, logits);
  const Value& all = logits[0];
  const std::uint64_t tokens = all.size(0) * (all.size(1) - 1);
  const Layout layout = all.size(0) > 1 ? Layout::with_gaps : Layout::in_order;
  const Value rest = slice(all, {all.size(0), all.size(1) - 1, all.size(2)}).laid_out(layout);
  const Value rows = view(rest, {tokens, all.size(2)});
  std::vector<Value> chunks;
  for (const std::uint64_t size : chunk_sizes(tokens)) chunks.push_back(rows.viewed({size, all.size(2)}));
  chunks = context.tape.record(
      "split", std::span(&rows, 1), std::move(chunks), {},
      [shape = rows.shape(), dtype = rows.dtype()](Tape& t, std::span<const Value>, std::vector<Value>&) {
        std::vector<Value> gradients;
        gradients.push_back(t.allocate("split backward", shape, dtype));
        return gradients;
      });
  return mean_of(context.tape, chunks);
}

Value base_model(ForwardContext& context) {
  Value x;
  if (const auto unit = unit_with(context, "transformer.wte")) x = embedded(context, *unit);
  x = run_blocks(context, autograd::litgpt_block, std::move(x));
  const auto unit = unit_with(context, "transformer.ln_f");
  return litgpt_norm((*unit)["transformer.ln_f"], x);
}

Value loss_of(ForwardContext& context, std::vector<Value>& logits) {
  const Value x = base_model(context);
  const auto head = unit_with(context, "lm_head");
  const Purpose before = context.tape.set_purpose(Purpose::loss);
  Value loss =
      has_adapters(context.held) ? chunked_head(context, *head, x, logits) : whole_head(context, *head, x, logits);
  context.tape.set_purpose(before);
  return loss;
}

// Between steps too: what StableEmbedding's weight and its predecessor's have that nothing uses.
std::vector<Value> left_over(ForwardContext& context) {
  const auto unit = unit_with(context, "transformer.wte");
  if (!unit || context.client.litgpt != LitGptVersion::current || !has_quantised(context.held)) return {};
  const Value weight = (*unit)["transformer.wte"].weight;
  const Purpose before = context.tape.set_purpose(Purpose::gradient);
  Value gradient = context.tape.allocate("gradient of StableEmbedding", weight.shape(), weight.dtype());
  context.tape.set_purpose(Purpose::workspace);
  Value replaced = context.tape.allocate("the embedding that it replaces", weight.shape(), weight.dtype());
  context.tape.set_purpose(before);
  return {std::move(gradient), std::move(replaced)};
}

}  // namespace

std::string litgpt_refuses(const Model& model, const Catalog&, const Setup& setup, const ClientSetup& client) {
  const Parallelism& parallel = setup.parallel;
  if (model.catalog.family != "litgpt") return fmt::format("profile litgpt knows models of family litgpt alone");
  if (parallel.tensor > 1 || parallel.context > 1 || parallel.expert > 1 || parallel.pipeline > 1) {
    return "profile litgpt shares out no layer, no sequence and no experts (--tp, --cp, --ep, --pp)";
  }
  if (setup.policy.compute != setup.policy.parameter && !autocasts(setup.policy)) {
    return fmt::format("profile litgpt computes in the parameters' dtype, or by autocast over fp32: {} is neither",
                       setup.policy.name);
  }
  if (client.loss != LossKind::eager) return "profile litgpt has the losses of its recipes alone (--loss eager)";
  if (client.recompute == RecomputeKind::selective || is_of_flows(client.recompute)) {
    return "profile litgpt recomputes whole blocks alone";
  }
  return {};
}

void run_litgpt(Tape& tape, const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                std::vector<SavedByUnit>* saved) {
  ForwardContext context{tape, model, held, setup, client};
  context.unfolded = !tape.options().folds;
  const std::vector<Value> kept = left_over(context);
  std::vector<Value> logits;
  if (autocasts(setup.policy)) tape.begin_autocast(setup.policy.compute);
  Value loss = loss_of(context, logits);
  tape.end_autocast();
  if (saved != nullptr) *saved = saved_tensors(tape);
  const Value gradient = tape.allocate("gradient", loss.shape(), loss.dtype());
  tape.backward(std::move(loss), gradient);
}

}  // namespace shardplan
