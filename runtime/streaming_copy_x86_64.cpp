#include <emmintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "runtime/streaming_copy.h"

namespace shardplan {
namespace {

// The processor gathers the stores of a line; wider ones than these were not faster.
constexpr std::size_t kLine = 64;

void stream_line(std::byte* to, const std::byte* from) {
  auto* const lines = reinterpret_cast<__m128i*>(to);
  const auto* const source = reinterpret_cast<const __m128i*>(from);
  const __m128i first = _mm_loadu_si128(source);
  const __m128i second = _mm_loadu_si128(source + 1);
  const __m128i third = _mm_loadu_si128(source + 2);
  const __m128i fourth = _mm_loadu_si128(source + 3);
  _mm_stream_si128(lines, first);
  _mm_stream_si128(lines + 1, second);
  _mm_stream_si128(lines + 2, third);
  _mm_stream_si128(lines + 3, fourth);
}

}  // namespace

void streaming_copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  const std::size_t before = std::min(bytes, (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, before);
  std::size_t done = before;
  for (; bytes - done >= kLine; done += kLine) stream_line(to + done, from + done);
  std::memcpy(to + done, from + done, bytes - done);
}

void streaming_fence() noexcept {
  _mm_sfence();
}

}  // namespace shardplan
