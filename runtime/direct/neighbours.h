// How the ranks of a direct communicator get at each other's memory: threads by pointer, processes by mapping it. One
// implementation for each; everything else is DirectCommunicator's. Internal to runtime/.
#pragma once

#include <memory>
#include <optional>

#include "base/bytes.h"
#include "runtime/symmetric_arena.h"

namespace shardplan {

// Plain data by which another rank finds a memory. Valid until the collective in which it was published has ended.
struct Offer {
  const void* pointer = nullptr;  // among threads
  SharedHandle handle{};          // among processes
};

// Memory that all ranks of a group have in common, zeroed by whoever made it.
struct CommonMemory {
  std::shared_ptr<std::byte> bytes;
  Offer offer;
  // Of the maker alone; to be kept until the others have opened the offer.
  std::shared_ptr<const void> keeper;
};

class Neighbours {
 public:
  virtual ~Neighbours() = default;

  virtual CommonMemory make_common(Bytes bytes) = 0;
  // Both name `world_rank`, whose offer it is, in errors.
  virtual std::shared_ptr<std::byte> open_common(int world_rank, const Offer& offer) = 0;
  virtual void open_arena(int world_rank, const Offer& offer, ArenaGroup& group) = 0;
  // `arena` must stay where it is until the offer has ended. ConfigError if the device's memory cannot be offered.
  virtual Offer offer_arena(const std::shared_ptr<Arena>& arena, const Device& device) = 0;

  // A descriptor that is readable once that rank's process has ended; -1 where ranks cannot end apart from each other.
  virtual int life_of(int world_rank) const = 0;
  // Whether ranks are processes: they can be killed and stopped one by one, and see each other's allocations only when
  // they are made.
  virtual bool processes() const = 0;
};

}  // namespace shardplan
