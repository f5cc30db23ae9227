// What the client's computation holds on a rank while one micro-batch goes forward and backward.
//
// The passes of units in order, each with what it leaves behind and the most it holds on the way. Equal blocks in a row
// are one span that counts how often it repeats, so that 126 layers cost as much as three.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "planner/activations/tape.h"

namespace shardplan {

// Bytes of each purpose. A difference may be negative: a backward leaves less than it found. Sums that do not fit into 63
// bits throw ArithmeticOverflow, here and in what is made of them.
using HeldBytes = std::array<std::int64_t, autograd::kPurposes>;
std::int64_t sum(const HeldBytes& held);
// sum += times x each
void add_times(HeldBytes& sum, const HeldBytes& each, std::uint64_t times);

// One pass of a unit, or of `times` equal units one after the other.
struct ActivitySpan {
  std::string unit;
  autograd::Pass pass = autograd::Pass::forward;
  std::uint64_t times = 1;
  HeldBytes net{};   // of one: what is held at its end and was not at its begin
  HeldBytes peak{};  // of one: the most that is held on the way, over what was held at its begin
  bool operator==(const ActivitySpan&) const = default;
};

struct SavedTensor {
  std::string operation;  // that made it
  Shape shape;
  DType dtype = DType::f32;
  Bytes bytes;
  std::string module{};  // that made it, below the unit: "self_attn.q_proj"; empty where no parameter took part
  std::vector<std::string> kept_by{};  // whose backward needs it: "mlp.down_proj: linear", "silu"
  bool operator==(const SavedTensor&) const = default;
};

// What a unit's forward keeps for its backward, each storage once: with the unit that saved it first.
struct SavedByUnit {
  std::string unit;
  std::uint64_t times = 1;
  std::vector<SavedTensor> tensors{};
  Bytes bytes{};  // of one of the equal units
  bool operator==(const SavedByUnit&) const = default;
};

struct ActivityPeak {
  HeldBytes held{};
  std::string unit;
  autograd::Pass pass = autograd::Pass::forward;
};

struct Activity {
  std::vector<ActivitySpan> spans;
  std::vector<SavedByUnit> saved;
  bool operator==(const Activity&) const = default;
};

// The module whose parameter this is, by its name below `unit`, or its whole one where it belongs to another (a tied head).
std::string module_of(std::string_view parameter, std::string_view unit);

// Of a tape whose saved tensors were listed at the end of its forward.
std::vector<SavedByUnit> saved_tensors(const autograd::Tape& tape);
std::vector<ActivitySpan> spans_of(const autograd::Tape& tape);
// The number of its events that are of the forward.
std::size_t end_of_forward(const autograd::Tape& tape);

// The worst moment, and what is held then.
ActivityPeak peak_of(const Activity& activity);
// What one micro-batch holds when its forward has ended.
HeldBytes after_forward(const Activity& activity);

}  // namespace shardplan
