#include "shard/checkpoint/read_ahead.h"

#include <algorithm>

namespace shardplan {
namespace {

constexpr std::uint64_t kMostAhead = std::uint64_t{16} << 20;
constexpr std::uint64_t kGap = std::uint64_t{1} << 20;  // what is left out and still in a row

}  // namespace

void ReadAhead::next(const InputFile& file, std::uint64_t begin, std::uint64_t end) {
  const bool in_a_row = begin >= read_ && begin - read_ <= kGap;
  if (!in_a_row) {
    row_ = begin;
    told_ = end;
  }
  read_ = end;
  told_ = std::max(told_, end);
  // In pieces of half of what is ahead: few calls.
  const std::uint64_t until = std::min(file.bytes(), end + std::min(kMostAhead, begin - row_));
  if (until <= told_ || (until < file.bytes() && until - told_ < (until - end) / 2)) return;
  file.expect(told_, until - told_);
  told_ = until;
}

}  // namespace shardplan
