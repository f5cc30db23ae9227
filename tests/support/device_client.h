// The synthetic client (synthetic_client.h) of an optimizer on any device: reads views and adds gradients through copies
// on the optimizer's compute stream, as a client must whose memory the host cannot touch.
#pragma once

#include "tests/shard/training_run.h"
#include "tests/support/synthetic_client.h"

namespace shardplan::test {

// Every step of the script, then an evaluation: what run_reference says of the same.
Trained run_on_device(ZeroOptimizer& optimizer, const Script& script, const StepPlan& plan, int rank);

}  // namespace shardplan::test
