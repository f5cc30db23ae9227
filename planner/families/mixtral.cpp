#include "planner/families/decoder.h"

namespace shardplan {

std::span<const Family> mixtral_families() {
  return {};
}

}  // namespace shardplan
