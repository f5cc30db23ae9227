#include "planner/families/decoder.h"

namespace shardplan {

std::span<const Family> diffusion_families() {
  return {};
}

}  // namespace shardplan
