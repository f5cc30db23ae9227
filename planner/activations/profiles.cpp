#include "planner/activations/profiles.h"

#include <fmt/format.h>

#include "planner/activations/hf/hf_model.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/megatron/megatron_model.h"

namespace shardplan {

ActivityResult activity_of(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                           const autograd::TapeOptions& options) {
  using namespace autograd;
  if (model.modules.empty()) return {{}, "only the model's tensors are known, not what its forward does with them"};
  if (client.sequence == 0 && (model.architecture.vocabulary > 0 || client.profile == Profile::megatron))
    return {{}, "the sequence length is not known (--seq)"};
  if (client.profile == Profile::megatron) {
    if (const std::string why = megatron_refuses(model, held); !why.empty()) return {{}, why};
    Tape tape(options);
    ActivityResult result;
    result.activity.emplace();
    run_megatron(tape, model, held, setup, client, &result.activity->saved);
    result.activity->spans = spans_of(tape);
    return result;
  }
  const Parallelism& parallel = setup.parallel;
  if (parallel.tensor > 1 || parallel.context > 1 || parallel.expert > 1) {
    return {{},
            fmt::format("profile {} shares out no layer, no sequence and no experts (--tp, --cp, --ep)",
                        name(client.profile))};
  }
  const HfFamily* family = find_hf_family(model.catalog.family);
  if (family == nullptr) {
    return {{}, fmt::format("profile {} does not know {} yet", name(client.profile), model.catalog.family)};
  }
  Tape tape(options);
  ActivityResult result;
  result.activity.emplace();
  try {
    ForwardContext context{tape, model, held, setup, client};
    Value loss = family->forward(context);
    tape.release_kept();  // of all outputs only the loss is kept
    result.activity->saved = saved_tensors(tape);
    // The loss's own gradient is a tensor of one; what comes from the next stage is as large as what went there.
    const Value gradient = tape.allocate("gradient", loss.shape(), loss.dtype());
    tape.backward(loss, gradient);
  } catch (const NotModelled& unknown) {
    return {
        {},
        fmt::format("profile {} does not know {} of {}", name(client.profile), unknown.what(), model.catalog.family)};
  }
  result.activity->gradient_share = options.gradient_share;
  result.activity->spans = spans_of(tape, options.gradient_share);
  return result;
}

}  // namespace shardplan
