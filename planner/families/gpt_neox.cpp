#include "planner/families/decoder.h"

namespace shardplan {

std::span<const Family> gpt_neox_families() {
  return {};
}

}  // namespace shardplan
