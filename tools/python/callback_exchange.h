// An Exchange whose messages a Python function passes on: torch.distributed's process groups.
//
//   function([(peer, bytes to send)], [(peer, bytes to fill)]) -> None, or (peer, what is wrong with it)
//
// Bytes are arrays for DLPack, valid until the call returns. The function is called by the rank's own thread, which
// takes the interpreter's lock for it.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>

#include "runtime/staged/exchange.h"

namespace shardplan::python {

class CallbackExchange final : public Exchange {
 public:
  CallbackExchange(int rank, int size, nanobind::callable function, std::chrono::milliseconds deadline);
  ~CallbackExchange() override;
  CallbackExchange(const CallbackExchange&) = delete;
  CallbackExchange& operator=(const CallbackExchange&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::chrono::milliseconds deadline() const override { return deadline_; }
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override;
  // A process group has no such message: peers learn of it at their deadline, or when this process ends.
  void give_up(std::string_view /*words*/) noexcept override {}

 private:
  int rank_;
  int size_;
  nanobind::callable function_;
  std::chrono::milliseconds deadline_;
};

}  // namespace shardplan::python
