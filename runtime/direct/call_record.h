// A CollectiveCall as plain data, for ranks that share no pointers. Internal to runtime/.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "runtime/collective_call.h"

namespace shardplan {

// At most N - 1 characters; what is longer loses its end.
template <std::size_t N>
class FixedText {
 public:
  FixedText() = default;
  FixedText& operator=(std::string_view text) {
    const std::size_t length = text.copy(text_.data(), N - 1);
    text_[length] = '\0';
    return *this;
  }
  const char* c_str() const { return text_.data(); }

 private:
  std::array<char, N> text_{};
};

struct CallRecord {
  struct Field {
    std::uint64_t value = 0;
    FixedText<24> name;
    FixedText<16> text;
  };
  FixedText<24> operation;
  std::array<Field, std::tuple_size_v<decltype(CollectiveCall::same)>> same{};
  Piece piece{};
  std::uint64_t place = 0;  // the offset of this rank's own input, in its arena
  int color = 0;
  int key = 0;
};
static_assert(std::is_trivially_copyable_v<CallRecord>);

inline void write(const CollectiveCall& call, CallRecord& record) {
  record.operation = call.operation;
  for (std::size_t i = 0; i < call.same.size(); ++i) {
    record.same[i].value = call.same[i].value;
    record.same[i].name = call.same[i].name;
    record.same[i].text = call.same[i].text;
  }
  record.piece = call.piece;
  record.color = call.color;
  record.key = call.key;
}

// Points into the record.
inline CollectiveCall read(const CallRecord& record) {
  CollectiveCall call{.operation = record.operation.c_str()};
  for (std::size_t i = 0; i < call.same.size(); ++i) {
    call.same[i] = {record.same[i].name.c_str(), record.same[i].value, record.same[i].text.c_str()};
  }
  call.piece = record.piece;
  call.color = record.color;
  call.key = record.key;
  return call;
}

}  // namespace shardplan
