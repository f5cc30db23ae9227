#include "runtime/virtual/virtual_world.h"

namespace shardplan {

bool virtual_ranks_are_threads() {
  return false;
}

}  // namespace shardplan
