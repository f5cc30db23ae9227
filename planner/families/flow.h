// How continuous flows are integrated (docs/flow-models.md).
#pragma once

#include <cstdint>
#include <string_view>

namespace shardplan {

// Of the field in one time step of "euler", "midpoint" or "rk4" (torchdiffeq 0.2.5, _impl/fixed_grid.py and rk_common.py). What a
// block's solver is called is the function of its module "residual".
std::uint64_t evaluations_of(std::string_view solver);

// Of the network in one time step: each evaluation computes the field, and the noise's product with its Jacobian, which takes as
// many operations. Architecture::block_uses is this times the time steps.
std::uint64_t uses_of_a_time_step(std::string_view solver);

}  // namespace shardplan
