#include "planner/families/decoder.h"

namespace shardplan {

std::span<const Family> t5_families() {
  return {};
}

}  // namespace shardplan
