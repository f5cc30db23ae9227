#include "shard/c_api/callers_exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace shardplan::c_api {

CallersExchange::~CallersExchange() {
  if (owned_ && transport_.release != nullptr) transport_.release(transport_.user);
}

void CallersExchange::exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) {
  sends_.clear();
  receives_.clear();
  // A C struct has one kind of pointer; the caller reads what it sends.
  for (const Outgoing& send : sends) {
    sends_.push_back({const_cast<std::byte*>(send.bytes.data()), send.bytes.size(), send.peer});
  }
  for (const Incoming& receive : receives) {
    receives_.push_back({receive.bytes.data(), receive.bytes.size(), receive.peer});
  }
  shardplan_peer_failure failure{.peer = -1, .gave_up = 0, .text = {}};
  const int result =
      transport_.exchange(transport_.user, sends_.data(), sends_.size(), receives_.data(), receives_.size(), &failure);
  if (result == 0) return;
  failure.text[sizeof failure.text - 1] = '\0';
  const bool known = failure.peer >= 0 && failure.peer < transport_.size;
  throw PeerFailure(
      known ? failure.peer : -1, failure.gave_up != 0 ? PeerFailure::Cause::gave_up : PeerFailure::Cause::other,
      failure.text[0] != '\0' ? failure.text : fmt::format("the transport's exchange returned {}", result));
}

// Neither allocates nor fails: words that do not fit are cut off.
void CallersExchange::give_up(std::string_view words) noexcept {
  std::array<char, 1024> text{};
  words.copy(text.data(), text.size() - 1);
  transport_.give_up(transport_.user, text.data());
}

}  // namespace shardplan::c_api
