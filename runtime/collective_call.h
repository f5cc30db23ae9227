// What a rank publishes about the collective that it calls, for its peers to compare. Internal to runtime/.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/collective_kernels.h"
#include "runtime/communicator.h"

namespace shardplan {

struct CollectiveCall {
  struct Field {
    std::string_view name;
    std::uint64_t value = 0;
    std::string_view text = {};  // stands for the value in messages
  };
  const char* operation = "";
  std::array<Field, 8> same = {};  // must be equal on every rank
  Piece piece = {};                // these three are each rank's own
  void* payload = nullptr;
  int color = 0;
  int key = 0;
};

CollectiveCall describe_call(const ReduceScatter& call);
CollectiveCall describe_call(const AllGather& call);

// Empty, or what differs: "rank 1 calls all_gather while rank 0 calls barrier".
std::string difference_of(const CollectiveCall& call, int world_rank, const CollectiveCall& expected,
                          int expected_world_rank);

// What the kernels are told of a call among `ranks`; inputs, output and elements are left to fill in.
ReduceRange range_of(const ReduceScatter& call, std::size_t ranks);

}  // namespace shardplan
