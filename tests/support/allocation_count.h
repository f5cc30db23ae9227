// Counts what a thread allocates: a test program that links allocation_count.cpp has the global operator new replaced.
#pragma once

#include <cstdint>

namespace shardplan::test {

// Calls of operator new (any form) by this thread so far.
std::uint64_t allocations_of_this_thread();

}  // namespace shardplan::test
