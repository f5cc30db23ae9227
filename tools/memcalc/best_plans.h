// The fastest set-ups of a space that fit.
//
// The time of every set-up is known before its memory, for it is cheap. They are looked at from the fastest on, and when as many
// fit as are asked for, the others are slower than those: decided without being sized. Of those before, what cannot fit is
// not sized either:
//
//   1. A profile that does not know the axes, ranks that contradict each other: once for all set-ups that share them.
//   2. An even share of the textbook's model states is more than the GPU has (Evaluator::least_states).
//   3. Model states alone are (Evaluator::states).
//   4. A smaller micro-batch with all else equal does not fit. Activations grow with it, and accumulated gradients are there or
//      not: so this says nothing of a step that is one micro-batch, which accumulates none.
//
// Each is a bound that no set-up under it passes, so what is found is what sizing all of them finds; a test compares the two.
#pragma once

#include "tools/memcalc/findings.h"
#include "tools/memcalc/joint_evaluator.h"
#include "tools/memcalc/search_space.h"

namespace shardplan::memcalc {

// At most `most` set-ups, the fastest first, planned whole: with what the allocator reserves and the context takes.
void find_best_plans(const SearchSpace& space, std::uint64_t most, JointEvaluator& evaluator, Findings& findings);

}  // namespace shardplan::memcalc
