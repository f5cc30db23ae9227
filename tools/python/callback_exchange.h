// An Exchange whose messages a Python object passes on: torch.distributed's process groups.
//
//   start([(peer, bytes to send)], [(peer, bytes to fill)]) -> work
//   finish(work) -> None, or (peer, what is wrong with it)
//
// Messages to a peer arrive in the order in which they were started. Bytes are arrays for DLPack, valid until the work is
// finished. Both are called by the rank's own thread, which takes the interpreter's lock for it.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>

#include "runtime/staged/exchange.h"

namespace shardplan::python {

class CallbackExchange final : public Exchange {
 public:
  CallbackExchange(int rank, int size, nanobind::object messages, std::chrono::milliseconds deadline);
  ~CallbackExchange() override;
  CallbackExchange(const CallbackExchange&) = delete;
  CallbackExchange& operator=(const CallbackExchange&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::chrono::milliseconds deadline() const override { return deadline_; }
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override;
  void exchange_both(const Messages& first, const std::function<void()>& look, const Messages& second) override;
  // A process group has no such message: peers learn of it at their deadline, or when this process ends.
  void give_up(std::string_view /*words*/) noexcept override {}

 private:
  int rank_;
  int size_;
  nanobind::object start(const Messages& messages);
  void finish(const nanobind::object& work);

  nanobind::object messages_;
  std::chrono::milliseconds deadline_;
};

}  // namespace shardplan::python
