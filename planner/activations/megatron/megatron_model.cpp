#include "planner/activations/megatron/megatron_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "base/checked.h"
#include "planner/activations/megatron/megatron_layers.h"
#include "planner/activations/stage_ends.h"
#include "planner/activations/torch_ops.h"
#include "planner/units.h"

namespace shardplan {
namespace {

using autograd::MegatronContext;
using autograd::MegatronUse;
using autograd::Purpose;
using autograd::Tape;
using autograd::Value;

// Equal layers in a row that are computed one by one, or as one unit of a recomputation.
struct Stretch {
  const UnitRun* run = nullptr;
  const MegatronLayer* layer = nullptr;
  std::uint64_t index = 0;
  std::uint64_t layers = 1;
  bool recomputed = false;
  bool like(const Stretch& other) const {
    return run == other.run && layers == other.layers && recomputed == other.recomputed;
  }
};

const UnitRun* unit(const Catalog& held, std::string_view name) {
  const auto found =
      std::find_if(held.runs.begin(), held.runs.end(), [&](const UnitRun& run) { return run.name == name; });
  return found == held.runs.end() ? nullptr : &*found;
}

bool has(const UnitRun* run, std::string_view part) {
  return run != nullptr && std::any_of(run->tensors.begin(), run->tensors.end(), [&](const Tensor& tensor) {
           return tensor.name.find(part) != std::string::npos;
         });
}

class Forward {
 public:
  Forward(MegatronContext& context, const Model& model, const Catalog& held)
      : c_(context), model_(model), held_(held), features_(model.architecture.hidden) {
    for (const UnitRun& run : held.runs) {
      if (run.numbered) layers_.emplace_back(&run, *megatron_layer(modules_of(model, run)->modules));
    }
  }

  Value run() {
    const UnitRun* head = unit(held_, kHeadUnit);
    const bool two_towers = !layers_.empty() && layers_.back().second.cross_attention;
    Value hidden = two_towers ? encode_and_decode() : blocks(embed(c_.tokens), {}, "");
    if (head == nullptr) return autograd::sent(hidden);  // M pipeline_parallel/schedules.py:171
    c_.tape.enter(head->name);
    return loss(*head, std::move(hidden));
  }

 private:
  const MegatronClient& m() const { return c_.megatron(); }
  bool rms() const {
    return std::any_of(model_.modules.begin(), model_.modules.end(), [](const ModuleRun& run) {
      return std::any_of(run.modules.begin(), run.modules.end(),
                         [](const Module& module) { return module.kind == ModuleKind::rms_norm; });
    });
  }

  // M models/common/embeddings/language_model_embedding.py; tensor_parallel/layers.py, VocabParallelEmbedding: masked ids are
  // kept. Its weight has a gradient of its own, never a stand-in.
  Value embed(const MegatronTokens& tokens) {
    const UnitRun* embedding = unit(held_, kEmbeddingUnit);
    if (embedding == nullptr) return autograd::received(c_.tape, {tokens.split, features_}, c_.dtype);
    c_.tape.enter(embedding->name);
    const Value weight = c_.tape.parameter("word embeddings", {1}, c_.dtype, true);
    std::vector<Value> saved;
    saved.push_back(c_.tape.allocate("masked ids", {tokens.tokens}, DType::i64));
    Value hidden = c_.allocate("word embedding", {tokens.tokens, features_});
    if (tokens.split < tokens.tokens) hidden = c_.allocate("scattered", {tokens.split, features_});
    hidden = c_.tape.record("word embedding", std::span(&weight, 1), std::move(hidden), std::move(saved),
                            [rows = vocabulary(), features = features_, dtype = c_.dtype](
                                Tape& tape, std::span<const Value>, std::vector<Value>&) {
                              const Purpose before = tape.set_purpose(Purpose::gradient);
                              const Value gradient = tape.allocate("embedding gradient", {rows, features}, dtype);
                              tape.set_purpose(before);
                              return std::vector<Value>(1);
                            });
    if (has(embedding, "position")) hidden = shift(hidden);
    hidden = contiguous(hidden);
    if (m().fp32_residual_connection) hidden = to(hidden, DType::f32);
    return dropout(hidden, m().hidden_dropout);
  }

  std::uint64_t vocabulary() const {
    const Parallelism& p = c_.setup.parallel;
    return round_up(model_.architecture.vocabulary, checked_multiply(p.vocabulary_multiple, p.tensor)) / p.tensor;
  }

  // T5. Both halves are on every rank; the encoder's tokens and the decoder's differ.
  Value encode_and_decode() {
    const std::string& decoder = layers_.back().first->name;
    Value encoded = blocks(embed(c_.tokens), {}, layers_.front().first->name);
    encoded = norm(c_, encoded, rms());
    c_.tokens = megatron_tokens(c_.setup, c_.client, m().decoder_sequence);
    return blocks(embed(c_.tokens), encoded, decoder);
  }

  // M core/recompute.py: uniform, units of n layers, each keeps its input; block, the first n layers of each piece.
  std::vector<Stretch> stretches(std::string_view stack) const {
    std::vector<Stretch> all;
    const bool full = c_.client.recompute == RecomputeKind::full;
    const std::uint64_t n = std::max<std::uint64_t>(m().recompute_num_layers, 1);
    const bool by_block = full && m().recompute_method == RecomputeMethod::block;
    std::uint64_t left = by_block ? m().recompute_num_layers : 0;
    for (const auto& [run, layer] : layers_) {
      if (!stack.empty() && run->name != stack) continue;
      for (std::uint64_t i = 0; i < run->count;) {
        const std::uint64_t layers = full && !by_block ? std::min(n, run->count - i) : 1;
        const bool recomputed = full && (!by_block || left > 0);
        if (by_block && left > 0) --left;
        all.push_back({run, &layer, i, layers, recomputed});
        i += layers;
      }
    }
    return all;
  }

  Value blocks(Value hidden, const Value& encoded, std::string_view stack) {
    const std::vector<Stretch> all = stretches(stack);
    for (std::size_t first = 0; first < all.size();) {
      std::size_t end = first + 1;
      while (end < all.size() && all[end].like(all[first])) ++end;
      const std::size_t count = end - first;
      const std::size_t middle = c_.tape.options().folds && count > 3 ? count - 2 : 1;
      for (std::size_t i = 0; i < count;) {
        const std::size_t times = i == 1 ? middle : 1;
        hidden = run_stretch(all[first + i], times, std::move(hidden), encoded);
        i += times;
      }
      first = end;
    }
    return hidden;
  }

  Value run_stretch(const Stretch& stretch, std::size_t times, Value hidden, const Value& encoded) {
    c_.tape.enter(unit_name(*stretch.run, stretch.index), times);
    // A recomputation comes when another stack may have had its turn: the tokens are those of this one.
    const auto forward = [this, layer = stretch.layer, layers = stretch.layers,
                          tokens = c_.tokens](std::span<const Value> inputs) {
      const auto others = std::exchange(c_.tokens, tokens);
      Value x = inputs[0];
      for (std::uint64_t i = 0; i < layers; ++i) {
        x = megatron_layer_forward(c_, *layer, {std::move(x), inputs.size() > 1 ? inputs[1] : Value()});
      }
      c_.tokens = others;
      return x;
    };
    std::vector<Value> inputs;
    inputs.push_back(std::move(hidden));
    if (encoded.defined()) inputs.push_back(encoded);
    return stretch.recomputed ? c_.tape.reentrant_checkpoint(forward, inputs) : forward(inputs);
  }

  // M models/gpt/gpt_model.py; models/bert/bert_lm_head.py between norm and output layer.
  Value loss(const UnitRun& head, Value hidden) {
    hidden = norm(c_, hidden, rms());
    if (has(&head, "lm_head.dense")) {
      Value dense = column_linear(c_, hidden, features_, {.whole = true});
      dense = unary("gelu", dense);
      hidden = norm(c_, dense, false);
    }
    return vocabulary_loss(c_, hidden, vocabulary());
  }

  MegatronContext& c_;
  const Model& model_;
  const Catalog& held_;
  std::uint64_t features_;
  std::vector<std::pair<const UnitRun*, MegatronLayer>> layers_;
};

DType activation_dtype(const Policy& policy) {
  return bits(policy.parameter) >= 16 ? policy.parameter : DType::bf16;
}

MegatronContext context_of(Tape& tape, const Setup& setup, const ClientSetup& client) {
  return {.tape = tape,
          .setup = setup,
          .client = client,
          .dtype = activation_dtype(setup.policy),
          .tokens = megatron_tokens(setup, client, client.sequence)};
}

// M training/utils.py, get_batch_on_this_tp_rank: the last stage has labels and the loss's mask, the first token and
// position ids, both the mask of attention.
Bytes batch_bytes(const MegatronContext& context, bool first, bool last) {
  const std::uint64_t tokens = context.tokens.tokens;
  Bytes bytes;
  if (first) bytes += 2 * bytes_for(DType::i64, tokens);
  if (last) bytes += bytes_for(DType::i64, tokens) + bytes_for(DType::f32, tokens);
  return bytes;
}

Bytes mask_bytes(const MegatronContext& context) {
  const MegatronTokens& t = context.tokens;
  return Bytes{checked_multiply(t.batch, checked_multiply(t.whole, t.whole))};
}

}  // namespace

namespace {

// One stack of blocks between an embedding and a head of its vocabulary: what core/models/gpt and bert build.
bool is_language_model(const Model& model) {
  const std::uint64_t words = model.architecture.vocabulary;
  std::set<std::string_view> stacks;
  bool head = false;
  for (const ModuleRun& run : model.modules) {
    if (run.numbered) {
      stacks.insert(run.name);
      continue;
    }
    head = head || std::any_of(run.modules.begin(), run.modules.end(), [&](const Module& module) {
             return module.kind == ModuleKind::linear && module.output == words;
           });
  }
  return words > 0 && head && stacks.size() == 1;
}

// Else it is a reference, of which forwards are computed under no_grad.
bool trains(const Model& model) {
  return trainable_elements(model.catalog) > 0;
}

}  // namespace

std::string megatron_refuses(const Model& model, const Catalog& held) {
  if (!model.catalog.family.starts_with("megatron") && !is_language_model(model)) {
    return fmt::format("profile megatron does not know {}: expected one stack of blocks and a head of words",
                       model.catalog.family);
  }
  for (const UnitRun& run : held.runs) {
    for (const Tensor& tensor : run.tensors) {
      const bool balancing = tensor.name.find("bias") != std::string::npos;
      if (!tensor.trainable && !balancing && trains(model)) {
        return "profile megatron does not know frozen layers or adapters yet";
      }
    }
    if (!run.numbered) continue;
    if (run.name.starts_with("mtp.")) return "profile megatron does not know multi-token prediction yet";
    const ModuleRun* modules = modules_of(model, run);
    if (modules == nullptr || !megatron_layer(modules->modules)) {
      return fmt::format("profile megatron does not know the layers of {} ({})", run.name, model.catalog.family);
    }
  }
  if (model.architecture.hidden == 0) return "the hidden size of the model is not known";
  return {};
}

MegatronUse run_megatron(Tape& tape, const Model& model, const Catalog& held, const Setup& setup,
                         const ClientSetup& client, std::vector<SavedByUnit>* saved) {
  MegatronContext context = context_of(tape, setup, client);
  Forward forward(context, model, held);
  if (!trains(model)) {
    const autograd::NoGrad no_grad(tape);
    forward.run();
    context.use.stand_ins.clear();  // for gradients of weights
    return context.use;
  }
  Value loss = forward.run();
  if (saved != nullptr) *saved = saved_tensors(tape);
  const Value gradient = tape.allocate("gradient", loss.shape(), loss.dtype());
  tape.backward(std::move(loss), gradient);
  return context.use;
}

std::vector<ClientTerm> megatron_client_terms(const Model& model, const Catalog& held, const Setup& setup,
                                              const ClientSetup& client,
                                              const std::optional<MegatronMachine>& machine) {
  std::vector<ClientTerm> terms;
  const auto add = [&](std::string name, Bytes bytes, bool after_step, bool at_peak, const char* source) {
    if (bytes > Bytes{}) terms.push_back({std::move(name), bytes, after_step, at_peak, source});
  };
  Tape tape;
  const MegatronUse use = run_megatron(tape, model, held, setup, client);
  const MegatronContext context = context_of(tape, setup, client);
  const MegatronClient& m = client.megatron;
  if (machine) {
    const LibraryUse libraries{.cublas_workspace_config = machine->cublas_workspace_config,
                               .cublas_callers = use.torch_products ? 2U : 0U,
                               .transformer_engine = use.te_products,
                               .transformer_engine_overlap = m.tp_comm_overlap,
                               .transformer_engine_grouped = m.grouped_gemm};
    for (const Workspace& workspace : workspaces_of(machine->generation, libraries).list) {
      if (!workspace.in_allocator) continue;
      terms.push_back({workspace.name, workspace.total(), true, true, workspace.source});
    }
    // A copy for the forward, and transposed for the backward where products need one: up to Hopper.
    const bool transposes = machine->generation < GpuGeneration::blackwell;
    add("fp8 copies of weights", Bytes{checked_multiply(use.fp8_weight_bytes, transposes ? 2 : 1)}, true, true,
        "transformer_engine/pytorch/module/base.py, _fp8_workspaces");
  }
  Bytes stand_ins;
  for (const auto& [rows, columns] : use.stand_ins)
    stand_ins += bytes_for(context.dtype, checked_multiply(rows, columns));
  add("stand-ins for gradients of weights", stand_ins, true, true,
      "transformer_engine/pytorch/module/base.py, get_dummy_wgrad");
  add("global memory buffer", Bytes{use.global_buffer_bytes}, true, true, "megatron/core/utils.py, GlobalMemoryBuffer");
  add("rotary table", Bytes{use.rotary_bytes}, true, true,
      "megatron/core/models/common/embeddings/rotary_pos_embedding.py");
  const bool first = unit(held, kEmbeddingUnit) != nullptr;
  const bool last = unit(held, kHeadUnit) != nullptr;
  add("batch", batch_bytes(context, first, last), false, true, "megatron/training/utils.py, get_batch_on_this_tp_rank");
  if (m.create_attention_mask && (first || last)) {
    add("attention mask", mask_bytes(context), false, true, "megatron/training/utils.py, get_batch_on_this_tp_rank");
  }
  if (setup.parallel.pipeline > 1 && !first) {
    const std::uint64_t bytes =
        bytes_for(context.dtype, checked_multiply(context.tokens.split, model.architecture.hidden)).count();
    const Bytes inputs{checked_multiply(setup.parallel.virtual_stages, bytes)};
    add("last input of each piece and its gradient", 2 * inputs, true, false,
        "megatron/core/pipeline_parallel/schedules.py: set_input_tensor and retain_grad");
    if (last) {
      add("gradient of each piece's input before", inputs, false, true,
          "megatron/core/pipeline_parallel/schedules.py: input_tensor_grad");
    }
  }
  return terms;
}

}  // namespace shardplan
