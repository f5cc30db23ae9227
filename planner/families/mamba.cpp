#include "planner/families/decoder.h"

namespace shardplan {

std::span<const Family> mamba_families() {
  return {};
}

}  // namespace shardplan
