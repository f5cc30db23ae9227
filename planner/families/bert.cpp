#include "planner/families/decoder.h"

namespace shardplan {

std::span<const Family> bert_families() {
  return {};
}

}  // namespace shardplan
