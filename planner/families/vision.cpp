#include "planner/families/decoder.h"

namespace shardplan {

std::span<const Family> vision_families() {
  return {};
}

}  // namespace shardplan
