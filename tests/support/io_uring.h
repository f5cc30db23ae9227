// Whether this build and this system have io_uring.
#pragma once

#include <string>

#include "base/error.h"
#include "offload/io_uring.h"

namespace shardplan::test {

// Why not; empty: they have.
inline std::string no_io_uring() {
  try {
    const IoUrings rings(1);
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  }
}

}  // namespace shardplan::test
