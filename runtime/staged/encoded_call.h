// A collective call as plain data, for ranks that cannot read each other's memory. Internal to runtime/.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "runtime/collective_call.h"

namespace shardplan {

// What each rank sends to every other one before a collective. Texts that are too long are cut.
struct EncodedCall {
  struct Field {
    std::uint64_t value;
    std::array<char, 16> text;
  };
  std::uint64_t group;    // of ranks, within the family
  std::uint64_t next_id;  // of groups and arenas: what this rank would choose
  std::array<char, 24> operation;
  std::array<Field, std::tuple_size_v<decltype(CollectiveCall::same)>> same;
  Piece piece;
  std::int64_t color;
  std::int64_t key;
};
static_assert(std::has_unique_object_representations_v<EncodedCall>, "no padding: every byte that is sent is set");

EncodedCall encode_call(const CollectiveCall& call, std::uint64_t group, std::uint64_t next_id);

// Views into `encoded`. The names of fields are those of `alike`, a call of the same operation.
CollectiveCall decode_call(const EncodedCall& encoded, const CollectiveCall& alike);

}  // namespace shardplan
