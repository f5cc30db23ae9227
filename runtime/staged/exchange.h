// What a transport between processes must be able to do: move bytes between pairs of ranks. StagedCommunicator makes all
// else of a Communicator from it (comparing calls, sums in tree order, groups, poison), once for every transport.
//
// Messages between two ranks arrive in the order in which they were sent, in each direction. That is all the matching
// there is: groups of ranks share one Exchange, and both ends of a pair make their calls in the same order.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/error.h"

namespace shardplan {

// No message is longer, so that lengths fit an int and a deadline, which is each message's, is felt.
inline constexpr Bytes kLongestMessage = 64_MiB;

class Exchange {
 public:
  struct Outgoing {
    int peer = 0;
    std::span<const std::byte> bytes;
  };
  struct Incoming {
    int peer = 0;
    std::span<std::byte> bytes;
  };

  // The peers see that this rank is gone, as well as the transport can show it; nobody is waited for, but for a moment.
  // After a call that threw, its bytes may be in the hands of the transport until then.
  virtual ~Exchange() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::chrono::milliseconds deadline() const = 0;

  // Sends and receives at once, in whatever order they come: every rank may send to every other one in the same call.
  // Two ranks agree on the length of what passes between them; at most one message in each direction per call, none
  // that is empty, longer than kLongestMessage, or to oneself. Returns when all has been received and what was sent may
  // be overwritten. One call at a time. Allocates nothing once the largest number of messages has been seen.
  // Throws PeerFailure.
  virtual void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) = 0;

  struct Messages {
    std::span<const Outgoing> sends;
    std::span<const Incoming> receives;
  };
  // exchange(first); look(); exchange(second). A transport whose messages to a peer arrive in order may have the second ones
  // under way before the first have come; one end may do so where the other does not. What look() throws, this throws, and
  // the second messages' bytes may then be in the hands of the transport, as after any call that threw.
  virtual void exchange_both(const Messages& first, const std::function<void()>& look, const Messages& second) {
    exchange(first.sends, first.receives);
    look();
    exchange(second.sends, second.receives);
  }

  // Tells the peers, as well as the transport can, that this rank gives up, and why: their waits end with these words.
  // Does not wait for them. From any thread, and more than once; a call of this rank's that is under way ends too.
  virtual void give_up(std::string_view words) noexcept = 0;
};

// Thrown by Exchange::exchange. `peer` is the rank that a wait was for, or that gave up; -1 if it is not known.
class PeerFailure : public Error {
 public:
  enum class Cause : std::uint8_t {
    gave_up,  // what() is what it said
    other,    // what() is the problem: kLate, kGone, or the transport's own text
  };
  static constexpr const char* kLate = "did not arrive before the deadline";
  static constexpr const char* kGone = "has left the group";

  PeerFailure(int peer, Cause cause, const std::string& what) : Error(what), peer_(peer), cause_(cause) {}
  int peer() const { return peer_; }
  Cause cause() const { return cause_; }

 private:
  int peer_;
  Cause cause_;
};

}  // namespace shardplan
