// Operations and programs: the ordered part of a step plan.
//
// How they are executed. Two streams, each in the program's order: computation (compute, accumulate, norm, update,
// cast) and communication (gather, reduce, agree, and what is fetched and evicted of parameters and gradients). What an operation waits for on the other stream stands in
// `waits_for`; on its own, the order is enough. A program begins when the one before it has finished on both. Where
// everything runs in line, as on the CPU, the order of the list is all there is.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace shardplan {

enum class OperationKind : std::uint8_t {
  gather,      // every rank of a shard group fills a padded buffer from all shards
  release,     // a gathered unit's bytes are given back
  compute,     // the client's own work on one unit
  reduce,      // contributions are summed along the reduction tree into this rank's shard, times 1/(N A)
  accumulate,  // a contribution is added to the local accumulator (cadence step)
  norm,        // squares of this rank's shard of a unit's gradient are summed, and checked to be finite
  agree,       // one collective: finite everywhere? the global norm, hence scale and clip. The commit point
  update,      // the optimizer's step on one unit, rounding to the parameter dtype included
  cast,        // a change of dtype by itself
  // From a slower tier to a faster one: a unit's parameters into a slot, as a gather does where they are sharded; of
  // optimizer states in a file, its blocks into the ring, ahead of their update; of parameters and gradients in a file, the
  // unit into its slot in pinned memory (and on into a slot of the device where parameters are not gathered from there).
  fetch,
  // From a faster tier to a slower one: a unit's updated blocks go back to the file. The fetch, update and evict of the units
  // that follow each other overlap block by block: while one is updated, the next are read and the ones before are
  // written; the ring's slots are all that they wait for. Likewise whole units of parameters and gradients: a unit that will
  // be fetched next is read while this one is in use, and written while the next one is.
  evict,
  snapshot,  // a copy for a checkpoint that is written while training goes on
};
std::string_view name(OperationKind kind);

enum class Pass : std::uint8_t { none, forward, recompute, backward };
std::string_view name(Pass pass);

// What is gathered, reduced, fetched or evicted, and among whom.
enum class Subject : std::uint8_t { none, parameter, gradient, optimizer_states };
enum class Scope : std::uint8_t { none, shard_group, replicas };

// An operation that must have finished: the latest earlier one of this kind (and pass) on this unit.
struct Dependency {
  OperationKind kind = OperationKind::compute;
  Pass pass = Pass::none;
  std::uint64_t unit = 0;
  bool operator==(const Dependency&) const = default;
};

struct Operation {
  OperationKind kind = OperationKind::compute;
  Pass pass = Pass::none;
  Subject subject = Subject::none;
  Scope scope = Scope::none;
  std::uint64_t unit = 0;
  // The step that the operation serves: a gather's is the one that will compute on the unit. Update: 0.
  std::uint64_t step = 0;
  // What one rank sends to others. Where ranks differ (replicas that share few granules): the most.
  Bytes sent;
  std::array<std::optional<Dependency>, 2> waits_for;
  bool operator==(const Operation&) const = default;
};

// `count` repetitions of the same operations: iteration i adds i * step_stride to each step and i * unit_stride to each
// unit (but `agree`'s, which is of no unit).
struct Segment {
  std::uint64_t count = 1;
  std::int32_t unit_stride = 0;
  std::uint32_t step_stride = 1;  // 0 in update
  std::vector<Operation> operations{};
  bool operator==(const Segment&) const = default;
};

// train_micro_batch: every micro-batch of a step but the last. Empty where A = 1.
// last_micro_batch: the last (or only) one. evaluate: forward only. update: after the last micro-batch.
enum class ProgramKind : std::uint8_t { train_micro_batch, last_micro_batch, evaluate, update };
inline constexpr std::size_t kPrograms = 4;
std::string_view name(ProgramKind kind);

struct Program {
  std::vector<Segment> segments;
  bool operator==(const Program&) const = default;
};

std::uint64_t operation_count(const Program& program);

// Iteration `iteration` of a segment's operation.
Operation expand(const Segment& segment, const Operation& operation, std::uint64_t iteration);

// Calls visit(operation) for every operation of the program in order, expanded.
template <typename Visitor>
void for_each_operation(const Program& program, Visitor&& visit) {
  for (const Segment& segment : program.segments) {
    for (std::uint64_t i = 0; i < segment.count; ++i) {
      for (const Operation& operation : segment.operations) visit(expand(segment, operation, i));
    }
  }
}

}  // namespace shardplan
