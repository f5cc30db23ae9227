// Small records between the hosts of ranks, over NCCL; and the comparison of what ranks call. Internal to runtime/cuda.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/collective_call.h"
#include "runtime/cuda/nccl_family.h"

namespace shardplan::cuda {

class RecordExchange {
 public:
  // `world_ranks` are the members'; this rank is member `rank`.
  RecordExchange(NcclLink& link, std::vector<int> world_ranks, int rank);

  // A collective that was queued: it becomes part of what the next exchange compares.
  void note(const CollectiveCall& call);

  // all = the members' records in order. `operation` is a text that stays. Poisons the family and throws if a member
  // exchanges something else, or has queued other collectives since the last exchange.
  void all_gather(const char* operation, std::span<const std::byte> mine, std::span<std::byte> all);
  // For records of up to kInline bytes, without a copy: visit(member, record).
  void visit(const char* operation, std::span<const std::byte> mine,
             const std::function<void(int, std::span<const std::byte>)>& visit);

  static constexpr std::size_t kInline = 192;

 private:
  // What a member says first, with the beginning of its record: always as many bytes, so that members that call
  // different things still meet.
  struct Greeting {
    char operation[32] = {};
    std::uint64_t bytes = 0;
    std::uint64_t calls = 0;   // collectives since the last exchange
    std::uint64_t digest = 0;  // of them
    std::uint64_t unused = 0;
    std::byte record[kInline] = {};
  };
  static_assert(sizeof(Greeting) == 256);

  void greet(const char* operation, std::span<const std::byte> mine);
  void compare(const char* operation) const;
  // sent_ of every member to received_, `bytes` of each.
  void exchange(const char* operation, std::size_t bytes);
  std::size_t members() const { return world_ranks_.size(); }
  const Greeting& greeting_of(std::size_t member) const {
    return reinterpret_cast<const Greeting*>(received_->data())[member];
  }

  NcclLink& link_;
  const std::vector<int> world_ranks_;
  const int rank_;
  std::unique_ptr<Memory> sent_;      // pinned
  std::unique_ptr<Memory> received_;  // pinned
  std::unique_ptr<Memory> device_sent_;
  std::unique_ptr<Memory> device_received_;
  CudaStream stream_;
  CudaEvent done_;
  std::uint64_t calls_ = 0;
  std::uint64_t digest_ = 0;
};

}  // namespace shardplan::cuda
