// What a simulated rank does instead of moving bytes to and from host memory and its file: it books them.
#pragma once

#include <memory>
#include <vector>

#include "offload/recording_tier.h"
#include "offload/transfer_queue.h"
#include "planner/cost/cluster.h"
#include "runtime/virtual/virtual_world.h"
#include "shard/kernels/kernels.h"

namespace shardplan {

// booking_kernels() for arrays that may lie in host memory: what a kernel reads and writes there crosses the link.
class LinkKernels final : public Kernels {
 public:
  // Both must outlive it.
  LinkKernels(VirtualRank& rank, const Costs& costs) : rank_(rank), costs_(costs) {}
  bool hold_values() const override { return false; }
  void cast(Stream& stream, const Elements& to, const ConstElements& from) const override;
  void accumulate(Stream& stream, const Elements& sum, const ConstElements& part) const override;
  void update(Stream& stream, const UpdateOptions& options, const UpdateArrays& arrays) const override;
  double sum_of_squares(Stream& stream, const ConstElements& values) const override;

 private:
  void book(Stream& stream, std::string_view what, const VirtualTraffic& traffic) const;

  VirtualRank& rank_;
  const Costs& costs_;
};

// A file that has a size, and no bytes.
class BookedFile final : public ByteTier {
 public:
  explicit BookedFile(Bytes bytes) : bytes_(bytes) {}
  std::string name() const override { return "simulated file"; }
  Bytes bytes() const override { return bytes_; }
  void read(std::uint64_t offset, std::span<std::byte> to) override { check_range(*this, offset, to.size()); }
  void write(std::uint64_t offset, std::span<const std::byte> from) override {
    check_range(*this, offset, from.size());
  }
  void flush() override {}
  void check() override {}

 private:
  Bytes bytes_;
};

// The disk reads and writes at the same time, each one transfer after the other. No memory is touched.
class BookedTransfers final : public Transfers {
 public:
  // All must outlive it.
  BookedTransfers(VirtualRank& rank, Device& device, const Disk& disk);
  Ticket submit(const Transfer& transfer) override;
  void wait(Ticket ticket) override;

 private:
  struct Open {
    Ticket ticket = 0;
    Transfer transfer;
    std::unique_ptr<Event> end;
  };

  VirtualRank& rank_;
  Device& device_;
  const Disk& disk_;
  std::unique_ptr<Stream> reads_;
  std::unique_ptr<Stream> writes_;
  std::vector<Open> open_;
  Ticket next_ = 1;
};

}  // namespace shardplan
