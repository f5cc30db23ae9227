// What all direct communicators of a family share: the first failure, and a bell for each rank. Internal to runtime/.
//
// Invariants:
//   1. Whatever lies in common memory is plain data and lock-free atomics, with one writer for each datum: a process can
//      be killed between any two instructions, and nobody waits for it to finish something.
//   2. The first failure stays. A rank writes its own failure whole before it tries to make it the first.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/bytes.h"
#include "runtime/direct/bell.h"
#include "runtime/direct/call_record.h"
#include "runtime/direct/neighbours.h"

namespace shardplan {

struct WorldBlock {
  struct Failure {
    std::atomic<bool> begun;  // its text is being written, or is written
    int rank;                 // the one to look at
    FixedText<24> operation;
    FixedText<1000> problem;
  };
  struct alignas(128) Rank {
    Bell bell;
    Failure failure;
  };
  std::atomic<int> first_failure;  // the rank that told it, + 1; 0: none
  std::atomic<std::uint64_t> next_arena_id;

  static Bytes bytes(int ranks) {
    return Bytes{sizeof(WorldBlock) + 128 + sizeof(Rank) * static_cast<std::size_t>(ranks)};
  }
  Rank& rank(int world_rank);
};

struct DirectOptions {
  std::chrono::milliseconds deadline{60'000};
  bool spin = false;  // before sleeping
};

// One rank's view of it.
class DirectWorld {
 public:
  DirectWorld(std::shared_ptr<Neighbours> neighbours, std::shared_ptr<std::byte> common, int rank, int ranks,
              const DirectOptions& options)
      : neighbours_(std::move(neighbours)), common_(std::move(common)), rank_(rank), ranks_(ranks), options_(options) {}

  Neighbours& neighbours() const { return *neighbours_; }
  int rank() const { return rank_; }
  const DirectOptions& options() const { return options_; }
  std::uint64_t next_arena_id() { return block().next_arena_id.fetch_add(1); }
  Bell& bell(int world_rank) { return block().rank(world_rank).bell; }

  // `rank` is the one to look at. Every rank is woken.
  void poison(int rank, std::string_view operation, std::string_view problem) noexcept;
  bool poisoned() const noexcept { return block().first_failure.load() != 0; }
  void throw_if_poisoned() const {
    if (poisoned()) throw_failure();
  }
  [[noreturn]] void throw_failure() const;

 private:
  WorldBlock& block() const { return *reinterpret_cast<WorldBlock*>(common_.get()); }

  const std::shared_ptr<Neighbours> neighbours_;
  const std::shared_ptr<std::byte> common_;
  const int rank_;
  const int ranks_;
  const DirectOptions options_;
};

}  // namespace shardplan
