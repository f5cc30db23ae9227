// The caller's transport, a table of C functions, as the Exchange of a StagedCommunicator.
#pragma once

#include <vector>

#include "runtime/staged/exchange.h"
#include "shard/c_api/shardplan.h"

namespace shardplan::c_api {

class CallersExchange final : public Exchange {
 public:
  CallersExchange(const shardplan_transport& transport, std::chrono::milliseconds deadline)
      : transport_(transport), deadline_(deadline) {}
  ~CallersExchange() override;
  CallersExchange(const CallersExchange&) = delete;
  CallersExchange& operator=(const CallersExchange&) = delete;

  // From now on the destructor calls the caller's release.
  void release_at_end() { owned_ = true; }

  int rank() const override { return transport_.rank; }
  int size() const override { return transport_.size; }
  std::chrono::milliseconds deadline() const override { return deadline_; }
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override;
  void give_up(std::string_view words) noexcept override;

 private:
  const shardplan_transport transport_;
  const std::chrono::milliseconds deadline_;
  bool owned_ = false;
  std::vector<shardplan_message> sends_;
  std::vector<shardplan_message> receives_;
};

}  // namespace shardplan::c_api
