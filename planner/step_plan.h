// The step plan: who keeps which byte, and when. One value that the planner prints, the simulator walks and the
// runtime executes.
//
// It is made by make_step_plan, a pure function of (catalog, setup), and consists of
//   - the layout (planner/layout.h);
//   - the device arena: an offset for every buffer of the step, assigned once. Arrays are resident; slots are handed
//     out for a part of the step, and slots whose times do not overlap share bytes;
//   - four programs: sequences of operations, of which the optimizer's begin(program) chooses one.
// The ranks of a world run the same plan, so a buffer has the same offset on each. `hash` identifies the plan; ranks
// compare it before the first step.
//
// Equal units are folded everywhere, never expanded: a plan of 126 blocks is as large as one of 12.
//
// Time. A micro-batch over n units is 2n steps: step k < n is the forward of unit k, step k >= n the backward of unit
// 2n-1-k. Within a step: gathers are issued (phase 0), gradient buffers are handed out (1), the unit computes,
// parameters are released (2), reductions are issued (3). A moment is 4 x step + phase.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/layout.h"
#include "planner/operation.h"
#include "planner/setup.h"

namespace shardplan {

inline constexpr std::uint64_t kPhases = 4;
inline constexpr Bytes kControlRecord{64};  // what each rank says in `agree`

// What a buffer is for. The comment names its length per (unit, flat buffer): padded = the whole flat buffer,
// shard = padded / shards.
enum class BufferRole : std::uint8_t {
  parameter,    // resident; padded, or shard where parameters are sharded
  gradient,     // resident; padded, or shard where gradients are sharded
  accumulator,  // resident, with A > 1 and a gradient dtype that is not the accumulator's; padded or shard
  master,       // resident; padded, or shard where optimizer states are sharded; so are the next three
  first_moment,
  second_moment,
  ema,
  control,             // resident: one kControlRecord per rank, for `agree`
  staging,             // resident, transport staged only: the contributions of the other ranks to a piece of a shard
  gathered_parameter,  // a slot: padded
  contribution,        // a slot: padded, in the wire dtype; what the client writes gradients into
  partial,             // a slot: shard, fp32; the sum of one shard group, on its way through the replicas
};
std::string_view name(BufferRole role);

// The lines of a memory report.
enum class MemoryClass : std::uint8_t {
  parameters,
  gathered_parameters,
  gradients,
  optimizer_states,
  communication_buffers
};
inline constexpr std::size_t kMemoryClasses = 5;
MemoryClass class_of(BufferRole role);
std::string_view name(MemoryClass memory_class);

// A resident buffer of every unit of a run: unit i of the run has it at offset + i * stride.
struct Array {
  BufferRole role = BufferRole::parameter;
  std::uint32_t run = 0;     // of the layout; 0 for control and staging, which belong to no unit
  std::uint32_t buffer = 0;  // of UnitLayout::buffers
  DType dtype = DType::f32;
  std::uint64_t elements = 0;
  Bytes offset{};
  Bytes stride{};
  Bytes bytes{};  // of one unit
  std::uint64_t count = 1;
  bool operator==(const Array&) const = default;
};

// Bytes that are handed out again and again: to the units of steps first_step + i * step_stride, i < uses, from
// moment `begin` up to, not including, moment `end`. A unit's flat buffers follow each other inside the slot.
struct Slot {
  BufferRole role = BufferRole::gathered_parameter;
  std::uint32_t run = 0;
  std::uint64_t first_unit = 0;  // of the first step
  std::int32_t unit_stride = 0;  // what one further use adds to the unit
  std::uint64_t first_step = 0;
  std::uint64_t step_stride = 1;
  std::uint64_t uses = 1;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  Bytes offset{};
  Bytes bytes{};
  bool operator==(const Slot&) const = default;
};

struct ByteRange {
  Bytes offset;
  Bytes bytes;
  bool operator==(const ByteRange&) const = default;
};

struct ArenaPlan {
  std::vector<Array> arrays;
  std::vector<Slot> slots;
  Bytes resident;   // sum of the arrays
  Bytes live_peak;  // the largest sum of bytes handed out at one moment
  std::uint64_t peak_moment = 0;
  // What a rank allocates: live_peak, packing loss, alignment, and kArenaBaseShift for the shift of the base.
  Bytes bytes;
  bool operator==(const ArenaPlan&) const = default;
};

// Rank r's buffers start (r mod 8) x 4096 bytes into its allocation, array kind k at k x 4096 modulo 8 x 4096: equal
// offsets would otherwise meet in the same cache sets.
inline constexpr Bytes kShiftUnit{4096};
inline constexpr Bytes kArenaBaseShift{7 * 4096ULL};

// The dtypes of one flat buffer of a run's units, and where its gradients are written.
struct BufferPlan {
  Policy policy;  // after what the model fixes
  bool trainable = true;
  bool contribution_in_gradient = false;  // the client writes into the resident gradient: no slot
  bool operator==(const BufferPlan&) const = default;
};

struct StepPlan {
  Setup setup;
  Layout layout;
  std::vector<std::vector<BufferPlan>> buffers;  // [run][buffer]
  std::vector<UnitTie> ties;
  ArenaPlan device;
  std::array<Program, kPrograms> programs;  // indexed by ProgramKind
  std::string hash;                         // XXH3-128 of the catalog and of all of the above, 32 hex digits
  bool operator==(const StepPlan&) const = default;
};

// Throws ConfigError for a setup or a catalog that contradicts itself, ArithmeticOverflow for sizes beyond 64 bits.
StepPlan make_step_plan(const Catalog& catalog, const Setup& setup);

// Whether a class of tensors is really split: the stage says so and a shard group has more than one rank.
bool parameters_sharded(const StepPlan& plan);
bool gradients_sharded(const StepPlan& plan);
bool optimizer_states_sharded(const StepPlan& plan);

std::uint64_t backward_step(const StepPlan& plan, std::uint64_t unit);
std::uint64_t unit_of_step(const StepPlan& plan, std::uint64_t step);

// Where a unit's resident buffer is; nothing if the plan has none of that role for it.
std::optional<ByteRange> resident_range(const StepPlan& plan, BufferRole role, std::uint64_t unit,
                                        std::size_t buffer = 0);
// Where the slot is that holds `unit`'s buffers of that role at `step`; nothing if the plan has none. A contribution's
// and a partial's `step` is the unit's own backward.
std::optional<ByteRange> slot_range(const StepPlan& plan, BufferRole role, std::uint64_t step, std::uint64_t unit);
// Where flat buffer `buffer` is inside such a slot.
ByteRange buffer_in_slot(const StepPlan& plan, BufferRole role, std::uint64_t unit, std::size_t buffer);

}  // namespace shardplan
