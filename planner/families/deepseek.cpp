#include "planner/families/decoder.h"

namespace shardplan {

std::span<const Family> deepseek_families() {
  return {};
}

}  // namespace shardplan
