// What NcclCommunicators of one rank are made of: links (one ncclComm_t each) and the family that they belong to, with
// its first failure and a thread that watches what was queued. Internal to runtime/cuda.
//
// Collectives are queued on streams and the rank goes on; so it is the watch that keeps deadlines. It looks at each link
// every few milliseconds: an error of NCCL's, or an operation at which the GPU has stood for longer than the deadline,
// poisons the family and aborts all its links. Their kernels end then, whoever waits for a stream goes on, with bytes
// that mean nothing, and meets the failure in the next call of a communicator.
//
// Invariants:
//   1. A link's ncclComm_t is touched under its mutex only, and is null from its abort on.
//   2. Locks are taken in the order family, link. Nobody holds a link's lock and poisons.
//   3. NCCL is non-blocking here (ncclConfig_t::blocking = 0): no call of it waits for a peer while a lock is held.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/cuda/cuda_device.h"
#include "runtime/cuda/nccl_library.h"

namespace shardplan::cuda {

class NcclLink;

class NcclFamily {
 public:
  NcclFamily(int device, int world_rank, std::chrono::milliseconds deadline);
  ~NcclFamily();
  NcclFamily(const NcclFamily&) = delete;
  NcclFamily& operator=(const NcclFamily&) = delete;

  int device() const { return device_; }
  int world_rank() const { return world_rank_; }
  std::chrono::milliseconds deadline() const { return deadline_; }
  // The same on every rank, since all make the same arenas in the same order.
  std::uint64_t next_arena_id() { return next_arena_id_++; }

  void enroll(NcclLink& link);
  void leave(NcclLink& link);

  // The first failure stays. `rank` is a world rank, -1 if NCCL does not say which.
  void poison(int rank, const std::string& operation, const std::string& problem);
  bool poisoned() const { return poisoned_.load(); }
  void throw_if_poisoned() const {
    if (poisoned()) throw_failure();
  }
  [[noreturn]] void throw_failure() const;

 private:
  void watch();
  void poison_locked(int rank, const std::string& operation, const std::string& problem);

  const int device_;
  const int world_rank_;
  const std::chrono::milliseconds deadline_;
  std::uint64_t next_arena_id_ = 0;
  std::atomic<bool> poisoned_{false};
  mutable std::mutex mutex_;  // of what follows
  std::vector<NcclLink*> links_;
  int failed_rank_ = -1;
  std::string failed_operation_;
  std::string problem_;
  bool stopping_ = false;
  std::condition_variable stop_;
  std::thread watch_;
};

class NcclLink {
 public:
  // Collective among the `size` ranks that name the same id.
  NcclLink(std::shared_ptr<NcclFamily> family, const ncclUniqueId& id, int rank, int size);
  // Waits until the peers have left too, for NCCL's buffers are theirs to read: the deadline at most.
  ~NcclLink();
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;

  const std::shared_ptr<NcclFamily>& family() const { return family_; }

  // Queues what `enqueue` asks of NCCL, as one group, and returns when NCCL has put it on the stream. `operation` is a
  // text that stays. Allocates nothing if `enqueue` is a reference (std::ref).
  using Enqueue = std::function<void(ncclComm_t)>;
  void queue(const char* operation, cudaStream_t stream, const Enqueue& enqueue);
  // For enqueue: remembers the first answer that is an error.
  void take(ncclResult_t result) {
    if (result != ncclSuccess && (answer_ == ncclSuccess || answer_ == ncclInProgress)) answer_ = result;
  }

  struct Problem {
    std::string operation;
    std::string text;
  };
  // For the watch.
  std::optional<Problem> look();
  void abort() noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  // Between two marks on a stream. The clock starts when the GPU is seen at the first one.
  struct Pending {
    std::unique_ptr<CudaEvent> begin;
    std::unique_ptr<CudaEvent> end;
    const char* operation = "";
    std::optional<Clock::time_point> started;
  };
  Pending& place_for_next();
  void settle(const char* operation, ncclResult_t result);
  std::string text_of(ncclResult_t result) const;

  const std::shared_ptr<NcclFamily> family_;
  std::mutex mutex_;  // of what follows
  ncclComm_t comm_ = nullptr;
  std::array<Pending, 128> pending_;  // a ring
  std::size_t first_ = 0;
  std::size_t count_ = 0;
  ncclResult_t answer_ = ncclSuccess;  // of the group that is being queued; the rank's own
};

}  // namespace shardplan::cuda
