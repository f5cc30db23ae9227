// XXH3-128: what a checkpoint knows its bytes by. Finds every accident; not made against forgery.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace shardplan {

struct Digest {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  bool operator==(const Digest&) const = default;
};

inline constexpr std::size_t kDigestDigits = 32;

Digest digest_of(std::span<const std::byte> bytes);
std::string hex(const Digest& digest);
// 32 lower-case digits; nothing for anything else.
std::optional<Digest> parse_digest(std::string_view text);

// Of bytes that come in parts.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  void add(std::span<const std::byte> bytes);
  // Of all that was added since the last call.
  Digest finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace shardplan
