// Several models on the same GPUs: an actor, its reference and a critic; a frozen text encoder beside a transformer that is trained.
//
// Each is planned by itself with the same flags, and they take turns: while one computes or updates, the others hold what stays
// between steps. So a rank's peak is, over the models, the largest of one model's peak and the others' residents. Libraries'
// workspaces, the context and NCCL's buffers are the process's and count once. Of tensors that pass from one to another
// (an encoder's output, scores) nothing is known, and a note says so.
#pragma once

#include <optional>
#include <string>
#include <vector>

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

// MODEL and options.others. Throws Error.
PlannedTogether make_together(const PlanOptions& options);

std::string together_json(const PlannedTogether& together);
std::string together_text(const PlannedTogether& together, bool colour);

}  // namespace shardplan::memcalc
