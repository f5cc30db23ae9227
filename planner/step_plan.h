// The step plan: who keeps which byte, and when. One value that the planner prints, the simulator walks and the
// runtime executes.
//
// It is made by make_step_plan, a pure function of (catalog, setup), and consists of
//   - the layout (planner/layout.h);
//   - the device arena: an offset for every buffer of the step, assigned once. Arrays are resident; slots are handed
//     out for a part of the step, and slots whose times do not overlap share bytes;
//   - where something is offloaded, an arena of pinned host memory and a file, which hold arrays only;
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
  // Resident in pinned host memory, where anything is offloaded:
  values,         // kValuesBuffer: initial values and state, on their way in and out
  ring,           // the slots of BlockPlan
  block_records,  // kBlockRecord for each block in the file: checksum and step
  // A slot each, for units on their way to and from the file (planner/passage.h). Array::buffer is the slot's number.
  passing_parameters,
  passing_gradients,
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

// A resident buffer of some units of a run: unit first_index + i of the run has it at offset + i * stride, i < count.
struct Array {
  BufferRole role = BufferRole::parameter;
  std::uint32_t run = 0;     // of the layout; 0 for roles that belong to no unit
  std::uint32_t buffer = 0;  // of UnitLayout::buffers
  DType dtype = DType::f32;
  std::uint64_t elements = 0;
  Bytes offset{};
  Bytes stride{};
  Bytes bytes{};  // of one unit
  std::uint64_t count = 1;
  std::uint64_t first_index = 0;
  std::uint64_t first_block = 0;  // in a file: the number of its first block; file_blocks() more for each unit
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

inline constexpr Bytes kValuesBuffer{std::uint64_t{512} * 1024};
inline constexpr Bytes kBlockRecord{32};
inline constexpr Bytes kFilePage{4096};         // what direct I/O moves whole
inline constexpr std::uint64_t kRingSlots = 4;  // one is updated, one is written, two are read ahead

// Optimizer states in a file. Each array of a unit is cut into blocks of block_elements (the last one shorter), which are
// read and written whole. Block k of all states of a (unit, flat buffer) is in one slot of the ring at a time. Parameters and
// gradients in a file are cut into pieces instead, which pass with their unit (planner/passage.h); each is a block too.
struct BlockPlan {
  std::uint64_t block_elements = 0;
  std::uint64_t blocks = 0;      // in the file, of all arrays
  std::uint64_t ring_slots = 0;  // 0: no optimizer state is in a file
  Bytes slot;                    // of one slot of the ring
  bool operator==(const BlockPlan&) const = default;
};

// The first so many units have the class elsewhere than on the device.
struct OffloadedUnits {
  std::uint64_t optimizer = 0;
  std::uint64_t gradients = 0;
  std::uint64_t parameters = 0;
  bool operator==(const OffloadedUnits&) const = default;
};

struct StepPlan {
  Setup setup;
  Layout layout;
  std::vector<std::vector<BufferPlan>> buffers;  // [run][buffer]
  std::vector<UnitTie> ties;
  OffloadedUnits offloaded;
  ArenaPlan device;
  ArenaPlan pinned;  // of host memory; empty, and of 0 bytes, where nothing is offloaded
  ArenaPlan file;    // offsets are of the rank's file; no shift
  BlockPlan blocks;
  std::array<Program, kPrograms> programs;  // indexed by ProgramKind
  std::string hash;                         // XXH3-128 of the catalog and of all of the above, 32 hex digits
  bool operator==(const StepPlan&) const = default;
};

// Throws ConfigError for a setup or a catalog that contradicts itself, ArithmeticOverflow for sizes beyond 64 bits.
StepPlan make_step_plan(const Catalog& catalog, const Setup& setup);

// Whether a unit's parameters are copied into a slot for each use: gathered where they are sharded, fetched where they live
// in host memory or in a file.
bool parameters_in_slots(const StepPlan& plan);

// Whether a class of tensors is really split: the stage says so and a shard group has more than one rank.
bool parameters_sharded(const StepPlan& plan);
bool gradients_sharded(const StepPlan& plan);
bool optimizer_states_sharded(const StepPlan& plan);

std::uint64_t backward_step(const StepPlan& plan, std::uint64_t unit);
std::uint64_t unit_of_step(const StepPlan& plan, std::uint64_t step);

// Where a unit's resident buffer is; nothing if the plan has none of that role for it.
struct ResidentPlace {
  Tier tier = Tier::device;
  ByteRange range;                // of that tier's arena, or of the file
  std::uint64_t first_block = 0;  // in a file
};
std::optional<ResidentPlace> resident_place(const StepPlan& plan, BufferRole role, std::uint64_t unit,
                                            std::size_t buffer = 0);
// The range alone.
std::optional<ByteRange> resident_range(const StepPlan& plan, BufferRole role, std::uint64_t unit,
                                        std::size_t buffer = 0);
// Where the slot is that holds `unit`'s buffers of that role at `step`; nothing if the plan has none. A contribution's
// and a partial's `step` is the unit's own backward.
std::optional<ByteRange> slot_range(const StepPlan& plan, BufferRole role, std::uint64_t step, std::uint64_t unit);
// Where flat buffer `buffer` is inside such a slot.
ByteRange buffer_in_slot(const StepPlan& plan, BufferRole role, std::uint64_t unit, std::size_t buffer);

// Of a unit whose optimizer states are in the file: how many blocks an array of so many elements has, the elements of block
// `block`, and where a slot of the ring has a block of that role, in whole pages (of an array's first block; later ones are
// in the same place, and not longer).
std::uint64_t blocks_in(const StepPlan& plan, std::uint64_t elements);
Range block_range(const StepPlan& plan, std::uint64_t elements, std::uint64_t block);
ByteRange role_in_ring_slot(const StepPlan& plan, BufferRole role, std::uint64_t unit, std::size_t buffer);
// The elements of a (unit, flat buffer)'s optimizer states on one rank.
std::uint64_t state_elements(const StepPlan& plan, std::uint64_t unit, std::size_t buffer);

}  // namespace shardplan
