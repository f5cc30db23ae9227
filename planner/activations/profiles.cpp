#include "planner/activations/profiles.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "planner/activations/hf/hf_model.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/megatron/megatron_model.h"

namespace shardplan {

namespace {

using autograd::find_hf_family;
using autograd::ForwardContext;
using autograd::NotModelled;
using autograd::Tape;
using autograd::TapeOptions;
using autograd::Value;

// A kind of rank with tensors that are no model's own: adapters, quantised weights.
bool is_changed(const Catalog& held) {
  return std::any_of(held.runs.begin(), held.runs.end(), [](const UnitRun& run) {
    return std::any_of(run.tensors.begin(), run.tensors.end(), [](const Tensor& tensor) {
      return tensor.scales || tensor.name.find(".lora_A.") != std::string::npos;
    });
  });
}

std::string hf_refuses(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client) {
  const std::string_view profile = name(client.profile);
  if (client.profile != Profile::hf_eager && client.profile != Profile::hf_sdpa) {
    return fmt::format("profile {} is not known yet", profile);
  }
  const Parallelism& parallel = setup.parallel;
  if (parallel.tensor > 1 || parallel.context > 1 || parallel.expert > 1) {
    return fmt::format("profile {} shares out no layer, no sequence and no experts (--tp, --cp, --ep)", profile);
  }
  if (setup.policy.compute != setup.policy.parameter) {
    return fmt::format("profile {} does not know autocast ({}) yet", profile, setup.policy.name);
  }
  if (client.attention == AttentionKind::flash) {
    return fmt::format("profile {} does not know attention flash yet", profile);
  }
  if (client.loss != LossKind::eager) {
    return fmt::format("profile {} does not know loss {} yet", profile, loss_words(client.loss, client.loss_chunks));
  }
  const bool inverts = client.recompute == RecomputeKind::invert;
  if (inverts && model.catalog.family != "glow") {
    return fmt::format("recompute invert is of layers that can be inverted; {} has none", model.catalog.family);
  }
  if (client.recompute == RecomputeKind::selective) {
    return fmt::format("profile {} does not know recompute {} yet", profile,
                       recompute_words(client.recompute, client.recompute_every));
  }
  if (is_changed(held)) return fmt::format("profile {} does not know adapters and quantised weights yet", profile);
  if (find_hf_family(model.catalog.family) == nullptr) {
    return fmt::format("profile {} does not know {} yet", profile, model.catalog.family);
  }
  return {};
}

void run_hf(Tape& tape, const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
            std::vector<SavedByUnit>* saved) {
  ForwardContext context{tape, model, held, setup, client};
  context.unfolded = !tape.options().folds;
  Value loss = find_hf_family(model.catalog.family)->forward(context);
  tape.release_kept();  // of all outputs only the loss is kept
  if (saved != nullptr) *saved = saved_tensors(tape);
  // The loss's own gradient is a tensor of one; what comes from the next stage is as large as what went there.
  const Value gradient = tape.allocate("gradient", loss.shape(), loss.dtype());
  tape.backward(std::move(loss), gradient);
}

}  // namespace

std::string profile_refuses(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client) {
  if (model.modules.empty()) return "only the model's tensors are known, not what its forward does with them";
  if (client.sequence == 0 && (model.architecture.vocabulary > 0 || client.profile == Profile::megatron)) {
    return "the sequence length is not known (--seq)";
  }
  if (client.profile != Profile::megatron) return hf_refuses(model, held, setup, client);
  if (client.loss == LossKind::chunked || client.recompute == RecomputeKind::every ||
      client.recompute == RecomputeKind::invert) {
    return "profile megatron has neither loss chunked=N nor recompute every=N or invert";
  }
  return megatron_refuses(model, held);
}

void run_profile(Tape& tape, const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                 std::vector<SavedByUnit>* saved) {
  if (client.profile == Profile::megatron) {
    run_megatron(tape, model, held, setup, client, saved);
  } else {
    run_hf(tape, model, held, setup, client, saved);
  }
}

ActivityResult activity_of(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                           const TapeOptions& options) {
  if (std::string why = profile_refuses(model, held, setup, client); !why.empty()) return {{}, std::move(why)};
  Tape tape(options);
  ActivityResult result;
  result.activity.emplace();
  try {
    run_profile(tape, model, held, setup, client, &result.activity->saved);
  } catch (const NotModelled& unknown) {
    return {
        {},
        fmt::format("profile {} does not know {} of {}", name(client.profile), unknown.what(), model.catalog.family)};
  }
  result.activity->spans = spans_of(tape);
  return result;
}

}  // namespace shardplan
