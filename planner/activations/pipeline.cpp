#include "planner/activations/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "planner/parallel.h"
#include "planner/units.h"

namespace shardplan {
namespace {

using autograd::Pass;

std::uint64_t chunks_of_rank(const Parallelism& p) {
  return resolved_schedule(p) == PipelineSchedule::dualpipe ? 2 : p.virtual_stages;
}

// A step repeats itself once every chunk has had its turn with the pipeline full: more micro-batches hold no more.
std::uint64_t enough_micro_batches(const Parallelism& p, std::uint64_t micro_batches) {
  const std::uint64_t enough = 4 * p.pipeline;
  return micro_batches <= enough ? micro_batches : enough + micro_batches % p.pipeline;
}

// schedules.py, get_schedule_table: the chunks that follow each other in forward.
std::vector<std::uint64_t> chunk_order(std::uint64_t chunks, std::uint64_t micro_batches, std::uint64_t group) {
  std::vector<std::uint64_t> order;
  for (std::uint64_t first = 0; first < micro_batches; first += group) {
    const std::uint64_t together = std::min(group, micro_batches - first);
    for (std::uint64_t chunk = 0; chunk < chunks; ++chunk) order.insert(order.end(), together, chunk);
  }
  return order;
}

std::uint64_t sum_of(const HeldChunks& held) {
  return std::accumulate(held.begin(), held.end(), std::uint64_t{0});
}

// Calls visit(pass, held) for each pass, its own micro-batch among those held.
template <typename Visit>
void walk(const Parallelism& p, std::uint64_t rank, std::uint64_t micro_batches, Visit&& visit) {
  HeldChunks held(chunks_of_rank(p));
  for (const ChunkPass& pass : order_of_passes(p, rank, enough_micro_batches(p, micro_batches))) {
    if (pass.pass == Pass::forward) ++held[pass.chunk];
    visit(pass, std::as_const(held));
    if (pass.pass == Pass::backward) --held[pass.chunk];
  }
}

// Where the order is not written out.
HeldChunks held_by_formula(const Parallelism& p, std::uint64_t rank, std::uint64_t micro_batches) {
  if (resolved_schedule(p) == PipelineSchedule::zero_bubble) return {std::min(p.pipeline, micro_batches)};
  // Half of the micro-batches enter at either end. The rank's chunks are stages r and P - 1 - r in the order of the model.
  const std::uint64_t nearer = std::min(rank, p.pipeline - 1 - rank);
  const std::uint64_t each = std::max<std::uint64_t>(micro_batches / 2, 1);
  return {std::min(p.pipeline - nearer, each), std::min(nearer + 1, each)};
}

bool has_order(const Parallelism& p) {
  const PipelineSchedule schedule = resolved_schedule(p);
  return schedule == PipelineSchedule::one_f_one_b || schedule == PipelineSchedule::interleaved;
}

bool is_layer(const UnitRun& run, const std::string& stack) {
  return run.numbered && run.name == stack;
}

// Pieces of the model that a rank holds, in order.
std::vector<std::uint64_t> pieces_of_rank(const Parallelism& p, std::uint64_t rank) {
  if (resolved_schedule(p) == PipelineSchedule::dualpipe) {
    const std::uint64_t other = p.pipeline - 1 - rank;
    return {std::min(rank, other), std::max(rank, other)};
  }
  std::vector<std::uint64_t> pieces;
  for (std::uint64_t v = 0; v < p.virtual_stages; ++v) pieces.push_back(v * p.pipeline + rank);
  return pieces;
}

// The part of a rank's layers whose numbers are in [begin, end).
void append_layers(const Catalog& held, const std::string& stack, std::uint64_t begin, std::uint64_t end,
                   Catalog& chunk) {
  for (const UnitRun& run : held.runs) {
    if (!is_layer(run, stack)) continue;
    const std::uint64_t first = std::max(begin, run.first_number);
    const std::uint64_t last = std::min(end, run.first_number + run.count);
    if (first >= last) continue;
    chunk.runs.push_back(run);
    chunk.runs.back().first_number = first;
    chunk.runs.back().count = last - first;
  }
}

}  // namespace

std::string uneven_interleaving(const Parallelism& p, std::uint64_t micro_batches) {
  if (resolved_schedule(p) != PipelineSchedule::interleaved || micro_batches % p.pipeline == 0) return {};
  return fmt::format(
      "{} micro-batches a step do not divide into groups of --pp {}, which interleaving takes: expected a multiple",
      micro_batches, p.pipeline);
}

std::vector<ChunkPass> order_of_passes(const Parallelism& p, std::uint64_t rank, std::uint64_t micro_batches,
                                       std::uint64_t group) {
  SHARDPLAN_CHECK(has_order(p) && rank < p.pipeline, "a schedule whose order is written out, and a rank of it");
  const std::uint64_t chunks = p.virtual_stages;
  const std::vector<std::uint64_t> order = chunk_order(chunks, micro_batches, group > 0 ? group : p.pipeline);
  const std::uint64_t all = micro_batches * chunks;
  const std::uint64_t later = p.pipeline - rank - 1;
  const std::uint64_t warm_up =
      std::min(all, chunks == 1 ? later : 2 * later + (chunks - 1) * (group > 0 ? group : p.pipeline));
  std::vector<ChunkPass> passes;
  std::uint64_t forward = 0;
  std::uint64_t backward = 0;
  while (backward < all) {
    if (forward < all && forward < warm_up + backward + 1) {
      passes.push_back({order[forward++], Pass::forward});
    } else {
      passes.push_back({chunks - 1 - order[backward++], Pass::backward});
    }
  }
  return passes;
}

HeldChunks held_while(const Parallelism& p, std::uint64_t rank, std::uint64_t micro_batches, std::uint64_t chunk) {
  if (!has_order(p)) return held_by_formula(p, rank, micro_batches);
  HeldChunks most(chunks_of_rank(p));
  walk(p, rank, micro_batches, [&](const ChunkPass& pass, const HeldChunks& held) {
    if (pass.chunk == chunk && sum_of(held) > sum_of(most)) most = held;
  });
  return most;
}

HeldChunks most_held(const Parallelism& p, std::uint64_t rank, std::uint64_t micro_batches) {
  if (!has_order(p)) return held_by_formula(p, rank, micro_batches);
  HeldChunks most(chunks_of_rank(p));
  walk(p, rank, micro_batches, [&](const ChunkPass&, const HeldChunks& held) {
    if (sum_of(held) > sum_of(most)) most = held;
  });
  return most;
}

std::vector<Catalog> chunks_of(const Model& model, const Catalog& held, const Parallelism& p, std::uint64_t rank) {
  const std::vector<std::uint64_t> pieces = pieces_of_rank(p, rank);
  if (pieces.size() == 1) return {held};
  const std::string stack = main_stack(model.catalog);
  std::uint64_t layers = 0;
  std::uint64_t first_number = 0;
  for (const UnitRun& run : model.catalog.runs) {
    if (!is_layer(run, stack)) continue;
    if (layers == 0) first_number = run.first_number;
    layers += run.count;
  }
  const std::vector<std::uint64_t> counts = layers_of_pieces(layers, p);
  Catalog empty = held;
  empty.runs.clear();
  std::vector<Catalog> chunks(pieces.size(), empty);
  const auto first_layer =
      std::find_if(held.runs.begin(), held.runs.end(), [&](const UnitRun& run) { return is_layer(run, stack); });
  for (std::size_t c = 0; c < pieces.size(); ++c) {
    const bool first = pieces[c] == 0;
    const bool last = pieces[c] + 1 == counts.size();
    // What is before the layers is with the first piece of all, what is behind them with the last.
    for (auto run = held.runs.begin(); first && run != held.runs.end() && run->name != kHeadUnit; ++run) {
      if (run >= first_layer) break;
      chunks[c].runs.push_back(*run);
    }
    const std::uint64_t begin =
        std::accumulate(counts.begin(), counts.begin() + static_cast<std::ptrdiff_t>(pieces[c]), first_number);
    append_layers(held, stack, begin, begin + counts[pieces[c]], chunks[c]);
    for (const UnitRun& run : held.runs) {
      const bool behind = run.name == kHeadUnit || run.name.starts_with("mtp.");
      if (last && behind) chunks[c].runs.push_back(run);
    }
  }
  return chunks;
}

PipelinePeak peak_of(std::span<const Activity> chunks, const Parallelism& p, std::uint64_t rank,
                     std::uint64_t micro_batches) {
  PipelinePeak worst;
  std::int64_t highest = -1;
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    const HeldChunks held = held_while(p, rank, micro_batches, c);
    SHARDPLAN_CHECK(held.size() == chunks.size() && held[c] > 0, "an activity for each chunk of the rank");
    ActivityPeak peak = peak_of(chunks[c]);
    for (std::size_t k = 0; k < chunks.size(); ++k) {
      add_times(peak.held, after_forward(chunks[k]), held[k] - (k == c ? 1 : 0));
    }
    const std::int64_t all = sum(peak.held);
    if (all <= highest) continue;
    highest = all;
    worst = {std::move(peak), c, held};
  }
  return worst;
}

}  // namespace shardplan
