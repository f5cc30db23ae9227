// Where one stage of a pipeline ends and the next begins.
#pragma once

#include "planner/activations/tape.h"

namespace shardplan::autograd {

// What has come from the stage before: a leaf whose gradient is handed back to it.
Value received(Tape& tape, Shape shape, DType dtype);

// What comes out at the end of a stage's forward, features for the next one or the loss, is let go of here; a gradient as large is
// made in the backward. `keeps_gradient`: who called the backward holds that until Tape::release_kept.
Value sent(const Value& end, bool keeps_gradient = false);

}  // namespace shardplan::autograd
