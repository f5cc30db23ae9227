// A setup as tests of offload ask for it.
#pragma once

#include <cstdint>
#include <string>

#include "planner/offload.h"
#include "planner/setup.h"

namespace shardplan {

inline Setup offloaded_setup(const std::string& offload, int stage, std::uint64_t world) {
  Setup setup;
  setup.stage = stage;
  setup.world_size = world;
  setup.ema = true;
  setup.offload = parse_offload(offload).offload;
  return setup;
}

}  // namespace shardplan
