// Several models on the same GPUs: an actor, its reference and a critic; a frozen text encoder beside a transformer that is trained.
//
// Each is planned by itself with the same flags, and they take turns: while one computes or updates, the others hold what stays
// between steps. So a rank's peak is, over the models, the largest of one model's peak and the others' residents. Libraries'
// workspaces, the context and NCCL's buffers are the process's and count once. Of tensors that pass from one to another
// (an encoder's output, scores) nothing is known, and a note says so.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/families/model.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

struct PlannedTogether {
  std::vector<PlanOptions> options;  // of each model, in the order of the command line
  std::vector<Planned> models;
  std::vector<RankReport> ranks;  // of all together, one for each pipeline stage
  std::size_t worst = 0;
  std::optional<Capacity> gpu;
  std::optional<bool> fits;
  std::vector<std::string> notes;
};

inline constexpr std::string_view kTurnsNote =
    "the models take turns: while one computes, the others hold what stays between steps; tensors that pass from one "
    "to "
    "another are not counted";

// "gpt2", or "gpt2 (frozen)" where nothing of it is trained.
std::string name_beside_others(const Catalog& model);

// The set-up of each MODEL by itself, in the order of the command line: MODEL's, and those of options.others.
std::vector<PlanOptions> options_of_models(const PlanOptions& options);
// Of one of several: where it is frozen it has no adapters and recomputes nothing, for it has no backward.
void settle_frozen(PlanOptions& of_one);

// Of `ranks`, one of each model on the same GPU: all that is resident, and the peak of the model whose turn is worst.
// `libraries`: workspaces that are a part of each one's peak and there once.
RankReport rank_together(const std::vector<const RankReport*>& ranks, const std::vector<std::string>& names,
                         Bytes libraries);

// What a rank keeps between steps but for `libraries`; nothing where that is not known.
std::optional<Bytes> resident_bytes(const RankReport& rank, Bytes libraries);
// What all of them are known to need on the GPU of rank_together's rank.
Bytes least_together_bytes(const RankReport& together);

// MODEL and options.others. Throws Error.
PlannedTogether make_together(const PlanOptions& options);
// The same of models that have been read, each with its set-up.
PlannedTogether make_together(std::vector<PlanOptions> options, const std::vector<Model>& models);

std::string together_json(const PlannedTogether& together);
std::string together_text(const PlannedTogether& together, bool colour);

}  // namespace shardplan::memcalc
