#include "runtime/staged/encoded_call.h"

#include <algorithm>

namespace shardplan {
namespace {

// Always with a zero at the end.
template <std::size_t kSize>
std::array<char, kSize> text_of(std::string_view text) {
  std::array<char, kSize> characters{};
  std::copy_n(text.begin(), std::min(text.size(), kSize - 1), characters.begin());
  return characters;
}

}  // namespace

EncodedCall encode_call(const CollectiveCall& call, std::uint64_t group, std::uint64_t next_id) {
  EncodedCall encoded{.group = group,
                      .next_id = next_id,
                      .operation = text_of<sizeof(EncodedCall::operation)>(call.operation),
                      .same = {},
                      .piece = call.piece,
                      .color = call.color,
                      .key = call.key};
  for (std::size_t i = 0; i < call.same.size(); ++i) {
    encoded.same[i] = {call.same[i].value, text_of<sizeof(EncodedCall::Field::text)>(call.same[i].text)};
  }
  return encoded;
}

CollectiveCall decode_call(const EncodedCall& encoded, const CollectiveCall& alike) {
  CollectiveCall call{.operation = encoded.operation.data(),
                      .piece = encoded.piece,
                      .color = static_cast<int>(encoded.color),
                      .key = static_cast<int>(encoded.key)};
  for (std::size_t i = 0; i < call.same.size(); ++i) {
    call.same[i] = {alike.same[i].name, encoded.same[i].value, encoded.same[i].text.data()};
  }
  return call;
}

}  // namespace shardplan
