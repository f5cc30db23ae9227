// An obviously right, slow, expanded model of a training step, to hold a folded step plan against.
//
// Nothing here is folded, and nothing uses planner/schedule or the arena's own arithmetic: units are listed one by
// one from the catalog, sizes come from the layout and the policy table, and every operation of every program is
// visited. Functions that check return what is wrong, or "".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/catalog.h"
#include "planner/step_plan.h"

namespace shardplan::test_support {

struct BufferFacts {
  std::uint64_t padded = 0;
  std::uint64_t shard = 0;
  std::uint64_t granule = 1;
  bool trainable = true;
  Policy policy;
  // Where the client writes its gradient: the resident gradient, or a contribution slot.
  bool has_contribution_slot = false;
  // Cadence step, last micro-batch: whether the reduction reads that slot, or the resident sum.
  bool sum_is_in_gradient = false;
};

struct UnitFacts {
  std::size_t run = 0;
  std::vector<std::uint64_t> owners;  // earlier units whose tensors this one uses, each once
  std::vector<BufferFacts> buffers;
  bool trainable = false;  // owns an element-carrying or empty buffer with a gradient
};

// One rank's model, every unit by itself.
struct ModelFacts {
  Setup setup;
  std::uint64_t shards = 1;
  std::uint64_t replicas = 1;
  bool adds_locally = false;  // A > 1 at cadence step
  std::vector<UnitFacts> units;

  std::uint64_t backward_of(std::uint64_t unit) const { return 2 * units.size() - 1 - unit; }
};

ModelFacts facts_of(const Catalog& catalog, const Setup& setup);

// A slot that a walk handed out: to one unit, for one purpose.
struct Lease {
  BufferRole role = BufferRole::gathered_parameter;
  std::uint64_t unit = 0;
  std::uint64_t step = 0;                // as slot_range names it
  std::uint64_t begin = 0;               // moments, half open
  std::uint64_t end = 0;
  std::vector<std::size_t> accesses;     // operations that read or write it: indices into the walk's
};

struct Walk {
  std::vector<Operation> operations;
  std::vector<Lease> leases;
  std::string problem;  // the first thing that is out of place
};

// Walks a micro-batch program or evaluation as a rank would: what is gathered when, what is reduced when, what each
// operation needs, and every lease.
Walk walk_program(const StepPlan& plan, const ModelFacts& facts, ProgramKind kind);

// The order and number of norm, agree, update and gather operations.
std::string update_problem(const StepPlan& plan, const ModelFacts& facts);

// Every dependency names an operation that comes earlier in its program.
std::string dependency_problem(const std::vector<Operation>& operations);

// Leases are inside their slots' times and inside the arena, two that live at once never overlap, and bytes change hands
// in an order that dependencies enforce: computes run in order, gathers and reductions run in order, and nothing
// but waits_for orders one with the other.
std::string lease_problem(const StepPlan& plan, const Walk& walk);

struct LivePeak {
  Bytes bytes;
  std::uint64_t moment = 0;
};

// The largest sum of bytes that the leases of one program hold at one moment, and the first such moment.
LivePeak lease_peak(const StepPlan& plan, const Walk& walk);

// Where the furthest array ends, and the furthest lease of one program, relative to the arena's shifted base.
Bytes furthest_array(const StepPlan& plan);
Bytes furthest_lease(const StepPlan& plan, const Walk& walk);

// Bytes sent in all operations of one training step: A - 1 train micro-batches, the last one, the update.
Bytes sent_in_step(const StepPlan& plan);
// The same from closed forms over padded buffers, summed over the expanded units.
Bytes expected_sent_in_step(const ModelFacts& facts);

}  // namespace shardplan::test_support
