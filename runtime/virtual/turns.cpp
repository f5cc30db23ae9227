#include "runtime/virtual/turns.h"

#include <fmt/format.h>

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <memory>
#include <new>
#include <semaphore>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"

namespace shardplan {
namespace {

namespace context = boost::context;

class FiberTurns final : public Turns {
 public:
  explicit FiberTurns(std::size_t stack_bytes) : stack_bytes_(stack_bytes) {}
  void block(int) override { main_ = std::move(main_).resume(); }

 protected:
  void start(int count, const Body& body) override {
    for (int rank = 0; rank < count; ++rank) {
      try {
        ranks_.emplace_back(std::allocator_arg, context::protected_fixedsize_stack(stack_bytes_),
                            [this, rank, &body](context::fiber&& main) {
                              main_ = std::move(main);
                              body(rank);
                              return std::move(main_);
                            });
      } catch (const std::bad_alloc&) {
        throw Error(
            fmt::format("no stack of {} KiB for virtual rank {} of {}: each takes two mappings of the process "
                        "(vm.max_map_count)",
                        stack_bytes_ / 1024, rank, count));
      }
    }
  }
  bool turn(int rank) override {
    context::fiber& fiber = ranks_[static_cast<std::size_t>(rank)];
    fiber = std::move(fiber).resume();
    return !fiber;
  }

 private:
  std::size_t stack_bytes_;
  context::fiber main_;  // who gave the turn
  std::vector<context::fiber> ranks_;
};

class ThreadTurns final : public Turns {
 public:
  ~ThreadTurns() override { join(); }
  void block(int rank) override {
    main_.release();
    ranks_[static_cast<std::size_t>(rank)]->baton.acquire();
  }

 protected:
  void start(int count, const Body& body) override {
    for (int i = 0; i < count; ++i) ranks_.push_back(std::make_unique<Rank>());
    try {
      for (int i = 0; i < count; ++i) {
        Rank& rank = *ranks_[static_cast<std::size_t>(i)];
        rank.thread = std::thread([this, i, &rank, &body] {
          rank.baton.acquire();
          if (!called_off_) body(i);
          rank.ended = true;
          main_.release();
        });
      }
    } catch (const std::system_error& error) {
      called_off_ = true;
      for (const auto& rank : ranks_) rank->baton.release();
      join();
      throw Error(fmt::format("no thread for each of {} virtual ranks: {}", count, error.what()));
    }
  }
  bool turn(int rank) override {
    ranks_[static_cast<std::size_t>(rank)]->baton.release();
    main_.acquire();
    return ranks_[static_cast<std::size_t>(rank)]->ended;
  }

 private:
  struct Rank {
    std::binary_semaphore baton{0};
    bool ended = false;
    std::thread thread;
  };
  void join() {
    for (const auto& rank : ranks_) {
      if (rank->thread.joinable()) rank->thread.join();
    }
  }

  std::counting_semaphore<> main_{0};  // more than one only where it is called off
  std::vector<std::unique_ptr<Rank>> ranks_;
  bool called_off_ = false;
};

}  // namespace

void Turns::run(int count, const Body& body, const std::function<void()>& stuck) {
  start(count, body);
  ready_.resize(static_cast<std::size_t>(count));
  for (int rank = 0; rank < count; ++rank) wake(rank);
  for (int ended = 0; ended < count;) {
    while (waiting_ == 0) stuck();
    const int rank = ready_[first_];
    first_ = first_ + 1 == ready_.size() ? 0 : first_ + 1;
    --waiting_;
    if (turn(rank)) ++ended;
  }
}

void Turns::wake(int rank) {
  const std::size_t at = first_ + waiting_++;
  ready_[at < ready_.size() ? at : at - ready_.size()] = rank;
}

std::unique_ptr<Turns> make_fiber_turns(std::size_t stack_bytes) {
  return std::make_unique<FiberTurns>(stack_bytes);
}

std::unique_ptr<Turns> make_thread_turns() {
  return std::make_unique<ThreadTurns>();
}

}  // namespace shardplan
