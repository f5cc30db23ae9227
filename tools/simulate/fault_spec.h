// Faults in words, as a command line has them:
//
//   kill,rank=3,operation=120                 the rank is gone before its 120th operation
//   stall,rank=3,operation=120,seconds=5      it does nothing for 5 s
//   slow-rank,rank=3,factor=2                 its kernels take twice as long (from operation 1 on, unless said)
//   slow-link,rank=3,factor=4                 so do collectives with it
//   drop,rank=3,operation=7                   its message of its 7th collective does not arrive
//   corrupt,rank=3,operation=7                or arrives damaged
//   out-of-memory,rank=3,bytes=16e9           its device has so many bytes
//   random                                    one of these, chosen by the seed so that it happens in the run
//
// rank is 0 where it is not said.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/virtual/virtual_world.h"

namespace shardplan {

// What a rank does in a run without faults.
struct FaultRange {
  std::uint64_t operations = 0;
  std::uint64_t collectives = 0;
  Bytes bytes;  // that it holds
};

// Throws ConfigError with `--fault` as its source. `undisturbed` tells what each rank does; it is called where there is
// a random fault, when everything else has been understood. The n-th fault has a seed of its own: seed + n.
std::vector<Fault> parse_faults(const std::vector<std::string>& texts, int ranks, std::uint64_t seed,
                                const std::function<std::vector<FaultRange>()>& undisturbed);
std::string describe(const Fault& fault);  // in the words above

}  // namespace shardplan
