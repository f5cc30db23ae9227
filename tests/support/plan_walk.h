// A slow, obvious walk of a step plan's programs, to hold the folded plan against: every operation is visited, as a rank
// would carry it out. Nothing here uses planner/schedule or the arena's arithmetic. Functions that check return what is
// wrong, or "".
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/step_plan.h"
#include "tests/support/model_facts.h"

namespace shardplan::test_support {

// A slot that a walk handed out: to one unit, for one purpose.
struct Lease {
  BufferRole role = BufferRole::gathered_parameter;
  std::uint64_t unit = 0;
  std::uint64_t step = 0;   // as slot_range names it
  std::uint64_t begin = 0;  // moments, half open
  std::uint64_t end = 0;
  std::vector<std::size_t> accesses;  // operations that read or write it: indices into the walk's
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

// The operation that a dependency of operation `before` means: the latest earlier one; nothing if there is none.
std::optional<std::size_t> index_of_dependency(const std::vector<Operation>& operations, std::size_t before,
                                               const Dependency& dependency);

// Every dependency names an operation that comes earlier in its program.
std::string dependency_problem(const std::vector<Operation>& operations);

// Bytes sent in all operations of one training step: A - 1 train micro-batches, the last one, the update.
Bytes sent_in_step(const StepPlan& plan);

}  // namespace shardplan::test_support
