#include "runtime/virtual/turns.h"

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <memory>
#include <semaphore>
#include <thread>
#include <utility>
#include <vector>

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
      ranks_.emplace_back(std::allocator_arg, context::protected_fixedsize_stack(stack_bytes_),
                          [this, rank, &body](context::fiber&& main) {
                            main_ = std::move(main);
                            body(rank);
                            return std::move(main_);
                          });
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
  ~ThreadTurns() override {
    for (const auto& rank : ranks_) rank->thread.join();
  }
  void block(int rank) override {
    main_.release();
    ranks_[static_cast<std::size_t>(rank)]->baton.acquire();
  }

 protected:
  void start(int count, const Body& body) override {
    for (int i = 0; i < count; ++i) ranks_.push_back(std::make_unique<Rank>());
    for (int i = 0; i < count; ++i) {
      Rank& rank = *ranks_[static_cast<std::size_t>(i)];
      rank.thread = std::thread([this, i, &rank, &body] {
        rank.baton.acquire();
        body(i);
        rank.ended = true;
        main_.release();
      });
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
  std::binary_semaphore main_{0};
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace

void Turns::run(int count, const Body& body, const std::function<void()>& stuck) {
  for (int rank = 0; rank < count; ++rank) wake(rank);
  start(count, body);
  for (int ended = 0; ended < count;) {
    if (ready_.empty()) stuck();
    const int rank = ready_.front();
    ready_.pop_front();
    if (turn(rank)) ++ended;
  }
}

std::unique_ptr<Turns> make_fiber_turns(std::size_t stack_bytes) {
  return std::make_unique<FiberTurns>(stack_bytes);
}

std::unique_ptr<Turns> make_thread_turns() {
  return std::make_unique<ThreadTurns>();
}

}  // namespace shardplan
