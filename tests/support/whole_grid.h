// The large grids are sampled; SHARDPLAN_TEST_ALL=1 (./run test --all) takes them whole.
#pragma once

#include <cstdlib>
#include <string_view>

namespace shardplan::test_support {

inline bool whole_grid() {
  const char* all = std::getenv("SHARDPLAN_TEST_ALL");
  return all != nullptr && std::string_view(all) == "1";
}

}  // namespace shardplan::test_support
