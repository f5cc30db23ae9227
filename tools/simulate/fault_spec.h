// Faults in words, as a command line has them:
//
//   kill,rank=3,operation=120                 the rank is gone before its 120th operation
//   stall,rank=3,operation=120,seconds=5      it does nothing for 5 s
//   slow-rank,rank=3,factor=2                 its kernels take twice as long (from operation 1 on, unless said)
//   slow-link,rank=3,factor=4                 so do collectives with it
//   drop,rank=3,operation=7                   its message of its 7th collective does not arrive
//   corrupt,rank=3,operation=7                or arrives damaged
//   out-of-memory,rank=3,bytes=16e9           its device has so many bytes
//   random                                    one of these but the last, chosen by the seed
//
// rank is 0 where it is not said.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/virtual/virtual_world.h"

namespace shardplan {

// Throws ConfigError with `--fault` as its source. `operations` is how many a rank carries out in the run, among which
// random chooses.
Fault parse_fault(const std::string& text, int ranks, std::uint64_t seed, std::uint64_t operations);
std::string describe(const Fault& fault);  // in the words above

}  // namespace shardplan
