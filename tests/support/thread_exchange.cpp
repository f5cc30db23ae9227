#include "tests/support/thread_exchange.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "runtime/staged/staged_communicator.h"

namespace shardplan::test {
namespace {

// Where the threads meet: who sends leaves a view of the message, who receives copies it and takes the view away.
struct Wires {
  explicit Wires(int ranks) : size(static_cast<std::size_t>(ranks)), wires(size * size), farewells(size) {}

  std::span<const std::byte>& wire(int from, int to) {
    return wires[static_cast<std::size_t>(from) * size + static_cast<std::size_t>(to)];
  }

  struct Farewell {
    bool gone = false;
    bool gave_up = false;
    std::string words;
  };

  const std::size_t size;
  std::mutex mutex;  // of all that follows
  std::condition_variable changed;
  std::vector<std::span<const std::byte>> wires;  // an empty one carries nothing
  std::vector<Farewell> farewells;
};

class ThreadExchange final : public Exchange {
 public:
  ThreadExchange(std::shared_ptr<Wires> wires, int rank, std::chrono::milliseconds deadline)
      : wires_(std::move(wires)), rank_(rank), deadline_(deadline), received_(wires_->size) {}
  ~ThreadExchange() override {
    const std::lock_guard lock(wires_->mutex);
    wires_->farewells[static_cast<std::size_t>(rank_)].gone = true;
    wires_->changed.notify_all();
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(wires_->size); }
  std::chrono::milliseconds deadline() const override { return deadline_; }

  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
    const auto end = std::chrono::steady_clock::now() + deadline_;
    std::unique_lock lock(wires_->mutex);
    for (const Outgoing& send : sends) wires_->wire(rank_, send.peer) = send.bytes;
    std::fill(received_.begin(), received_.end(), false);
    wires_->changed.notify_all();
    try {
      while (!done(sends, receives)) {
        look_for_farewells(sends, receives);
        if (wires_->changed.wait_until(lock, end) == std::cv_status::no_timeout || done(sends, receives)) continue;
        look_for_farewells(sends, receives);
        throw PeerFailure(lowest_late(sends, receives), PeerFailure::Cause::other, PeerFailure::kLate);
      }
    } catch (...) {
      for (const Outgoing& send : sends) wires_->wire(rank_, send.peer) = {};
      throw;
    }
  }

  void give_up(std::string_view words) noexcept override {
    const std::lock_guard lock(wires_->mutex);
    Wires::Farewell& mine = wires_->farewells[static_cast<std::size_t>(rank_)];
    if (!std::exchange(mine.gave_up, true)) mine.words = words;
    wires_->changed.notify_all();
  }

 private:
  bool has_come(const Incoming& receive) const { return received_[static_cast<std::size_t>(receive.peer)]; }
  bool is_taken(const Outgoing& send) const { return wires_->wire(rank_, send.peer).empty(); }

  bool done(std::span<const Outgoing> sends, std::span<const Incoming> receives) {
    bool all = true;
    for (const Incoming& receive : receives) {
      std::span<const std::byte>& wire = wires_->wire(receive.peer, rank_);
      if (!has_come(receive) && !wire.empty()) {
        SHARDPLAN_CHECK(wire.size() == receive.bytes.size() && wire.size() <= kLongestMessage.count(),
                        "two ranks do not agree on a message's length");
        std::memcpy(receive.bytes.data(), wire.data(), wire.size());
        wire = {};
        received_[static_cast<std::size_t>(receive.peer)] = true;
        wires_->changed.notify_all();
      }
      all = all && has_come(receive);
    }
    return all && std::all_of(sends.begin(), sends.end(), [&](const Outgoing& send) { return is_taken(send); });
  }

  void look_for_farewells(std::span<const Outgoing> sends, std::span<const Incoming> receives) const {
    for (int peer = 0; peer < size(); ++peer) {
      const Wires::Farewell& farewell = wires_->farewells[static_cast<std::size_t>(peer)];
      if (farewell.gave_up) throw PeerFailure(peer, PeerFailure::Cause::gave_up, farewell.words);
    }
    const auto require_presence = [&](int peer) {
      if (!wires_->farewells[static_cast<std::size_t>(peer)].gone) return;
      throw PeerFailure(peer, PeerFailure::Cause::other, PeerFailure::kGone);
    };
    for (const Incoming& receive : receives) {
      if (!has_come(receive)) require_presence(receive.peer);
    }
    for (const Outgoing& send : sends) {
      if (!is_taken(send)) require_presence(send.peer);
    }
  }

  int lowest_late(std::span<const Outgoing> sends, std::span<const Incoming> receives) const {
    int late = size();
    for (const Incoming& receive : receives) {
      if (!has_come(receive)) late = std::min(late, receive.peer);
    }
    for (const Outgoing& send : sends) {
      if (late == size() && !is_taken(send)) late = send.peer;
    }
    return late;
  }

  const std::shared_ptr<Wires> wires_;
  const int rank_;
  const std::chrono::milliseconds deadline_;
  std::vector<bool> received_;  // of the current exchange, by peer
};

}  // namespace

std::vector<std::unique_ptr<Exchange>> make_thread_exchanges(int ranks, std::chrono::milliseconds deadline) {
  const auto wires = std::make_shared<Wires>(ranks);
  std::vector<std::unique_ptr<Exchange>> exchanges;
  exchanges.reserve(wires->size);
  for (int rank = 0; rank < ranks; ++rank) {
    exchanges.push_back(std::make_unique<ThreadExchange>(wires, rank, deadline));
  }
  return exchanges;
}

std::vector<std::unique_ptr<Communicator>> make_staged_communicators(int ranks, std::chrono::milliseconds deadline) {
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (auto& exchange : make_thread_exchanges(ranks, deadline)) {
    communicators.push_back(make_staged_communicator(std::move(exchange)));
  }
  return communicators;
}

}  // namespace shardplan::test
