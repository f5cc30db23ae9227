// Observes which bytes of a tier are ever used, without knowing what was planned.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "offload/tier.h"

namespace shardplan {

// Over a tier that it owns.
class RecordingTier final : public ByteTier {
 public:
  struct Report {
    Bytes high_water;  // furthest end of what has been written
    Bytes live;        // bytes that have been written, each counted once
    bool operator==(const Report&) const = default;
  };

  explicit RecordingTier(std::unique_ptr<ByteTier> inner) : inner_(std::move(inner)) {}
  Report report() const;

  std::string name() const override { return inner_->name(); }
  Bytes bytes() const override { return inner_->bytes(); }
  void read(std::uint64_t offset, std::span<std::byte> to) override { inner_->read(offset, to); }
  void write(std::uint64_t offset, std::span<const std::byte> from) override;
  void flush() override { inner_->flush(); }
  void check() override { inner_->check(); }

 private:
  std::unique_ptr<ByteTier> inner_;
  mutable std::mutex mutex_;
  std::map<std::uint64_t, std::uint64_t> written_;  // begin -> end, none touching another
};

}  // namespace shardplan
