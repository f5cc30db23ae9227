#include "planner/activations/hf/hf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

bool holds(const ModuleRun& run, std::string_view module) {
  return std::any_of(run.modules.begin(), run.modules.end(), [&](const Module& m) { return m.name == module; });
}

bool recomputed(const ForwardContext& context, std::uint64_t number) {
  const ClientSetup& client = context.client;
  if (context.never_recomputes || !context.tape.grad_enabled()) return false;
  return client.recompute == RecomputeKind::full ||
         (client.recompute == RecomputeKind::every && number % client.recompute_every == 0);
}

// What a block that runs again puts out for those behind it, beside the hidden features.
using Carried = Value SharedByBlocks::*;
std::vector<Carried> carried_by(const ForwardContext& context) {
  std::vector<Carried> carried;
  if (context.carries_encoded && context.shared.encoded.defined()) carried.push_back(&SharedByBlocks::encoded);
  if (context.makes_biases && !context.shared.bias.defined()) carried.push_back(&SharedByBlocks::bias);
  if (context.makes_biases && context.shared.encoded.defined() && !context.shared.cross_bias.defined()) {
    carried.push_back(&SharedByBlocks::cross_bias);
  }
  return carried;
}

// What a block is handed of what all share: of the mask of windows and the other one its own.
SharedByBlocks handed_to(const ForwardContext& context, const UnitView& block, const ModuleRun& modules) {
  SharedByBlocks shared = context.shared;
  const auto attending = std::find_if(modules.modules.begin(), modules.modules.end(),
                                      [](const Module& m) { return m.attention.has_value(); });
  if (attending == modules.modules.end()) return shared;
  const bool windowed = in_window(block, *attending->attention);
  if (shared.window_mask.defined()) (windowed ? shared.mask : shared.window_mask).reset();
  if (shared.window_tables.cos.defined() && !context.hands_all_tables) {
    (windowed ? shared.tables : shared.window_tables) = {};
  }
  return shared;
}

Value run_block(ForwardContext& context, BlockForward block, const UnitRun& run, const ModuleRun& modules,
                std::uint64_t index, std::uint64_t times, const Value& hidden) {
  context.tape.enter(unit_name(run, index), times);
  const UnitView unit(context.tape, modules.modules, run, index, context.parameter_dtype(),
                      context.client.adapter_dropout);
  const auto forward = [&context, block, unit](const Value& input) {
    Value output = block(context, unit, input);
    std::vector<Value> locals = std::exchange(context.block_locals, {});
    if (context.returns_probabilities && !context.tape.runs_again()) context.returned = std::move(locals);
    return output;
  };
  if (!recomputed(context, run.first_number + index)) return forward(hidden);
  const std::vector<Carried> carried = carried_by(context);
  auto with_shared = [&context, forward, carried,
                      shared = handed_to(context, unit, modules)](std::span<const Value> inputs) {
    SharedByBlocks before = std::exchange(context.shared, shared);
    std::vector<Value> routed = std::exchange(context.routed, {});
    std::vector<Value> outputs;
    outputs.push_back(forward(inputs[0]));
    for (const Carried member : carried) {
      const bool defined = (context.shared.*member).defined();
      SHARDPLAN_CHECK(defined || carried.size() == 1, "of several things that a block carries on one is missing");
      if (defined) outputs.push_back(std::move(context.shared.*member));
    }
    std::move(context.routed.begin(), context.routed.end(), std::back_inserter(outputs));
    context.shared = std::move(before);
    context.routed = std::move(routed);
    return outputs;
  };
  std::vector<Value> outputs = context.tape.checkpoint_all(with_shared, std::span(&hidden, 1));
  auto next = outputs.begin() + 1;
  for (const Carried member : carried) context.shared.*member = next == outputs.end() ? Value() : std::move(*next++);
  std::move(next, outputs.end(), std::back_inserter(context.routed));
  return std::move(outputs[0]);
}

// Blocks that attend within a window and others that do not differ, where the window decides anything: what they make of it, or, where
// they run again, what they keep of what all share.
bool alternates(const ForwardContext& context, const ModuleRun& modules) {
  const SharedByBlocks& shared = context.shared;
  const bool two_masks = shared.window_mask.defined() && shared.mask.defined();
  const bool one_mask = shared.window_mask.defined() != shared.mask.defined();
  const bool kept = two_masks && context.client.recompute != RecomputeKind::none;
  if (!one_mask && !kept && !shared.window_tables.cos.defined()) return false;
  return std::any_of(modules.modules.begin(), modules.modules.end(),
                     [](const Module& m) { return m.attention && !m.attention->whole.empty(); });
}

// Blocks of one run have the same tensors, but may differ in modules that have none: those from block `index` of the run on that
// do not.
struct EqualBlocks {
  const ModuleRun* modules = nullptr;
  std::uint64_t count = 0;
};

EqualBlocks equal_blocks(const Model& model, const UnitRun& run, std::uint64_t index) {
  UnitRun rest = run;
  rest.first_number += index;
  const ModuleRun* modules = modules_of(model, rest);
  return {modules, std::min(run.count - index, modules->first_number + modules->count - rest.first_number)};
}

}  // namespace

Value run_blocks(ForwardContext& context, BlockForward block, Value hidden, std::string_view stack,
                 const BlockRange& range) {
  for (const UnitRun& run : context.held.runs) {
    if (!run.numbered || (!stack.empty() && run.name != stack)) continue;
    const std::uint64_t end = range.end - std::min(range.end, run.first_number);
    for (std::uint64_t i = range.first - std::min(range.first, run.first_number); i < std::min(run.count, end);) {
      const auto [modules, equal] = equal_blocks(context.model, run, i);
      const std::uint64_t count = std::min(equal, end - i);
      // What all blocks share is kept by the first whose input needs a gradient; those after it are equal.
      const std::uint64_t alone = hidden.requires_grad() ? 1 : 2;
      const bool folds = count > alone + 2 && !context.unfolded && !alternates(context, *modules) &&
                         context.client.recompute != RecomputeKind::every;
      const std::uint64_t first = i;
      while (i < first + count) {
        const std::uint64_t times = folds && i == first + alone ? count - alone - 1 : 1;
        const std::size_t routed = context.routed.size();
        hidden = run_block(context, block, run, *modules, i, times, hidden);
        for (std::size_t k = routed; k < context.routed.size(); ++k) context.tape.keep(context.routed[k]);
        i += times;
      }
    }
  }
  context.returned.clear();
  return hidden;
}

const ModuleRun& first_blocks(const ForwardContext& context, std::string_view stack) {
  for (const ModuleRun& run : context.model.modules) {
    if (run.numbered && run.name == stack) return run;
  }
  throw NotModelled(fmt::format("a model without {}", stack));
}

bool has_module(const ForwardContext& context, std::string_view module) {
  return std::any_of(context.model.modules.begin(), context.model.modules.end(),
                     [&](const ModuleRun& run) { return holds(run, module); });
}

std::optional<UnitView> unit_with(ForwardContext& context, std::string_view module) {
  for (const UnitRun& run : context.held.runs) {
    const ModuleRun* modules = run.numbered ? nullptr : modules_of(context.model, run);
    if (modules == nullptr || !holds(*modules, module)) continue;
    context.tape.enter(unit_name(run, 0));
    return UnitView(context.tape, modules->modules, run, 0, context.parameter_dtype(), context.client.adapter_dropout);
  }
  return std::nullopt;
}

UnitView required_unit(ForwardContext& context, std::string_view module) {
  auto unit = unit_with(context, module);
  if (!unit) throw NotModelled(fmt::format("a part of the model without {}", module));
  return *unit;
}

const HfFamily* find_hf_family(std::string_view model_type) {
  static constexpr std::array kTables{
      hf_bert_families,    hf_chameleon_families, hf_clip_families,     hf_cnf_families,          hf_dbrx_families,
      hf_deberta_families, hf_deepseek_families,  hf_dit_families,      hf_flow_families,         hf_flux2_families,
      hf_gemma3_families,  hf_gpt2_families,      hf_gpt_neox_families, hf_kimi_vl_families,      hf_llama4_families,
      hf_llama_families,   hf_llava_families,     hf_mamba2_families,   hf_mamba_families,        hf_mixtral_families,
      hf_phimoe_families,  hf_qwen_vl_families,   hf_sd3_families,      hf_sd3_pipeline_families, hf_swin_families,
      hf_t5_families,      hf_vision_families};
  for (const auto table : kTables) {
    for (const HfFamily& family : table()) {
      if (family.model_type == model_type) return &family;
    }
  }
  return nullptr;
}

const HfFamily* find_liger_family(std::string_view model_type) {
  for (const HfFamily& family : hf_liger_families()) {
    if (family.model_type == model_type) return &family;
  }
  return nullptr;
}

}  // namespace shardplan::autograd
