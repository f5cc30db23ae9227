#include "planner/families/decoder.h"

namespace shardplan {

std::span<const Family> flow_families() {
  return {};
}

}  // namespace shardplan
