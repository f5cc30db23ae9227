// Where one stage of a pipeline ends and the next begins.
#pragma once

#include "planner/activations/tape.h"

namespace shardplan::autograd {

// What has come from the stage before. Its gradient goes back there.
Value received(Tape& tape, Shape shape, DType dtype);

// What the next stage gets is let go of here once it was sent; in the backward a gradient as large comes back.
Value sent(const Value& hidden);

}  // namespace shardplan::autograd
