// Units whose parameters or gradients are in the rank's file, and how they pass between it and the device.
//
// They pass whole, through slots in pinned host memory: gathers and copies read a unit's parameters there, reductions and
// updates write there. Unit u is in slot u modulo their number, whatever went before, so that it is at the same offset on
// every rank. A slot has a unit's arrays of the class one after the other, each in whole pages, in pieces: what one transfer
// moves.
#pragma once

#include "planner/step_plan.h"

namespace shardplan {

// One is in use, one is read ahead, one is written.
inline constexpr std::uint64_t kPassingSlots = 3;
// Of an array, so that a unit is a bounded number of transfers, however large it is.
inline constexpr std::uint64_t kMostPieces = 32;

// Of classes parameters and gradients. The first so many units are in the file.
std::uint64_t units_in_file(const StepPlan& plan, MemoryClass memory_class);
bool in_file(const StepPlan& plan, MemoryClass memory_class, std::uint64_t unit);

// How many slots the class has, 0 where none of it is in the file; and what slot `slot` holds at most.
std::uint64_t passing_slots(const StepPlan& plan, MemoryClass memory_class);
Bytes passing_slot_bytes(const StepPlan& plan, MemoryClass memory_class, std::uint64_t slot);
// Where a unit's array of role parameter, gradient or accumulator is while the unit is in its slot: of the pinned arena.
ByteRange passing_place(const StepPlan& plan, BufferRole role, std::uint64_t unit, std::size_t buffer);

// The pinned arena but for the slots: of a parameter count alone, whose one unit is no model's.
Bytes pinned_without_passing_slots(const StepPlan& plan);

// The pieces of an array of so many elements: whole pages of any dtype.
std::uint64_t piece_elements(const StepPlan& plan, std::uint64_t elements);
std::uint64_t pieces_in(const StepPlan& plan, std::uint64_t elements);
Range piece_range(const StepPlan& plan, std::uint64_t elements, std::uint64_t piece);

// Blocks in the file of an array of any role.
std::uint64_t file_blocks(const StepPlan& plan, BufferRole role, std::uint64_t elements);

// The most transfers of units that can be under way: all pieces of the units that are in slots.
std::uint64_t most_passing_transfers(const StepPlan& plan);

}  // namespace shardplan
