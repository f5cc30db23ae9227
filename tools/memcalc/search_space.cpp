#include "tools/memcalc/search_space.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/checked.h"
#include "planner/activations/profiles.h"

namespace shardplan::memcalc {

SearchSpace::SearchSpace(const PlanOptions& base, const FitOptions& question, const std::vector<Model>& models,
                         std::uint64_t sequences)
    : base_(base),
      question_(question),
      model_(models.front()),
      trains_(std::any_of(models.begin(), models.end(),
                          [](const Model& model) { return trainable_elements(model.catalog) > 0; })),
      sequences_(sequences) {
  add_recomputations();
  add_axes();
}

std::vector<std::uint64_t> SearchSpace::axis(const char* flag, std::uint64_t given, std::uint64_t largest) const {
  if (!varied(flag)) return {given};
  std::vector<std::uint64_t> powers;
  for (std::uint64_t power = 1; power <= largest; power *= 2) powers.push_back(power);
  return powers;
}

void SearchSpace::add_recomputations() {
  if (!varied("--recompute") || !trains_) {
    recomputations_.push_back({base_.client.recompute, base_.client.recompute_every});
    return;
  }
  PlanOptions plain = base_;
  plain.setup.parallel = {};
  for (const Recomputation choice :
       {Recomputation{RecomputeKind::none, 1}, Recomputation{RecomputeKind::selective, 1},
        Recomputation{RecomputeKind::every, 2}, Recomputation{RecomputeKind::full, 1},
        Recomputation{RecomputeKind::invert, 1}, Recomputation{RecomputeKind::adjoint, 1}}) {
    plain.client.recompute = choice.kind;
    plain.client.recompute_every = choice.every;
    const bool known = profile_refuses(model_, model_.catalog, plain.setup, plain.whole_client()).empty();
    if (known || choice.kind == RecomputeKind::none) recomputations_.push_back(choice);
  }
}

void SearchSpace::add_axes() {
  const std::uint64_t gpus = total_ranks(base_.setup);
  const Parallelism& given = base_.setup.parallel;
  const std::uint64_t layers = model_.architecture.layers;
  const bool routed = model_.catalog.active_parameters.has_value();
  // A sequence is cut into two parts for each rank.
  std::uint64_t most_context = 1;
  while (base_.sequence && *base_.sequence % (4 * most_context) == 0 && 2 * most_context <= gpus) most_context *= 2;
  Structure axes;
  for (const std::uint64_t tensor : axis("--tp", given.tensor, std::min(gpus, base_.node_gpus()))) {
    for (const std::uint64_t pipeline : axis("--pp", given.pipeline, std::min(gpus / tensor, layers))) {
      for (const std::uint64_t context : axis("--cp", given.context, most_context)) {
        if (gpus % (tensor * pipeline * context) != 0) continue;
        for (const std::uint64_t expert : axis("--ep", given.expert, routed ? gpus / pipeline : 1)) {
          const std::uint64_t most_pieces = pipeline > 1 ? layers / pipeline : 1;
          for (const std::uint64_t pieces : axis("--virtual-stages", given.virtual_stages, most_pieces)) {
            axes = {.world_size = gpus / (tensor * pipeline),
                    .tensor = tensor,
                    .pipeline = pipeline,
                    .context = context,
                    .expert = expert,
                    .virtual_stages = pieces};
            add_states(axes);
          }
        }
      }
    }
  }
}

std::vector<std::uint64_t> SearchSpace::replicas(const Structure& structure) const {
  if (!varied("--replicate")) return {base_.setup.replicate};
  std::vector<std::uint64_t> counts{1};
  const bool has_replicas = base_.engine == Engine::shardplan || base_.engine == Engine::fsdp2;
  if (structure.stage == 0 || !has_replicas) return counts;
  // Ranks of one node on the data axis: a group of fewer would leave its node for nothing.
  const std::uint64_t in_a_node = std::max<std::uint64_t>(base_.node_gpus() / structure.tensor, 2);
  for (std::uint64_t count = 2; structure.world_size / count >= in_a_node; count *= 2) {
    if (structure.world_size % count == 0) counts.push_back(count);
  }
  return counts;
}

// Whole classes in host memory, the dearest last.
std::span<const std::string_view> SearchSpace::offloads() const {
  static constexpr std::array<std::string_view, 4> kChoices{"", "optimizer=cpu", "optimizer=cpu,gradients=cpu",
                                                            "optimizer=cpu,gradients=cpu,parameters=cpu"};
  if (!varied("--offload") || base_.engine != Engine::shardplan || !trains_) return std::span(kChoices).first(1);
  return kChoices;
}

void SearchSpace::add_states(const Structure& axes) {
  Structure structure = axes;
  const std::vector<int> stages = !varied("--zero") ? std::vector{base_.setup.stage}
                                  : trains_         ? std::vector{0, 1, 2, 3}
                                                    : std::vector{0, 3};
  for (const int stage : stages) {
    structure.stage = stage;
    for (const std::string_view offload : offloads()) {
      structure.offload = offload;
      for (const std::uint64_t replicate : replicas(structure)) {
        structure.replicate = replicate;
        structures_.push_back(structure);
      }
    }
  }
}

std::vector<std::uint64_t> SearchSpace::micro_batches(const Structure& structure) const {
  const std::uint64_t data = structure.world_size / structure.context;
  std::vector<std::uint64_t> sizes;
  for (const std::uint64_t size : axis("--micro-batch", base_.micro_batch, sequences_ / data)) {
    if (sequences_ % checked_multiply(size, data) == 0) sizes.push_back(size);
  }
  return sizes;
}

void SearchSpace::set(PlanOptions& options, const Structure& structure) const {
  Setup& setup = options.setup;
  setup.world_size = structure.world_size;
  setup.stage = structure.stage;
  setup.replicate = structure.replicate;
  Parallelism& axes = setup.parallel;
  axes.tensor = structure.tensor;
  axes.pipeline = structure.pipeline;
  axes.context = structure.context;
  axes.expert = structure.expert;
  axes.virtual_stages = structure.virtual_stages;
  if (varied("--offload") && base_.engine == Engine::shardplan) {
    options.offload.reset();
    setup.offload = {};
    if (!structure.offload.empty()) {
      options.offload = structure.offload;
      setup.offload = parse_offload(structure.offload).offload;
    }
  }
  if (varied("--sequence-parallel")) axes.sequence_parallel = structure.tensor > 1;
}

void SearchSpace::set(PlanOptions& options, std::uint64_t micro_batch, const Recomputation& recomputation) const {
  options.micro_batch = micro_batch;
  options.setup.accumulation = sequences_ / (micro_batch * data_parallel(options.setup));
  options.client.recompute = recomputation.kind;
  options.client.recompute_every = recomputation.every;
  options.setup.recompute = recomputation.kind == RecomputeKind::full ? Recompute::full : Recompute::none;
}

}  // namespace shardplan::memcalc
