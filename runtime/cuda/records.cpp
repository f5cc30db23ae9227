#include "runtime/cuda/records.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "runtime/cuda/error.h"

namespace shardplan::cuda {
namespace {

constexpr std::size_t kChunk = 16384;             // bytes of a long record in one message
constexpr std::uint64_t kPrime = 0x100000001b3U;  // FNV-1a's
constexpr int kLooksPerSleep = 200;

std::uint64_t mixed(std::uint64_t digest, std::uint64_t value) {
  for (int byte = 0; byte < 8; ++byte) digest = (digest ^ (value >> (8 * byte) & 0xffU)) * kPrime;
  return digest;
}

std::unique_ptr<Memory> buffer(int device, MemoryTier tier, std::size_t bytes) {
  return CudaDevice(device).allocate({.tier = tier, .bytes = Bytes{bytes}});
}

}  // namespace

RecordExchange::RecordExchange(NcclLink& link, std::vector<int> world_ranks, int rank)
    : link_(link),
      world_ranks_(std::move(world_ranks)),
      rank_(rank),
      sent_(buffer(link.family()->device(), MemoryTier::pinned_host, kChunk)),
      received_(buffer(link.family()->device(), MemoryTier::pinned_host, kChunk * world_ranks_.size())),
      device_sent_(buffer(link.family()->device(), MemoryTier::device, kChunk)),
      device_received_(buffer(link.family()->device(), MemoryTier::device, kChunk * world_ranks_.size())),
      stream_(link.family()->device()),
      done_(link.family()->device()) {}

void RecordExchange::note(const CollectiveCall& call) {
  ++calls_;
  for (const char letter : std::string_view(call.operation))
    digest_ = mixed(digest_, static_cast<unsigned char>(letter));
  for (const CollectiveCall::Field& field : call.same) digest_ = mixed(digest_, field.value);
}

void RecordExchange::exchange(const char* operation, std::size_t bytes) {
  const OnDevice on(stream_.device());
  stream_.copy(device_sent_->data(), sent_->data(), Bytes{bytes});
  const auto gather = [&](ncclComm_t comm) {
    link_.take(
        nccl().AllGather(device_sent_->data(), device_received_->data(), bytes, ncclUint8, comm, stream_.handle()));
  };
  link_.queue(operation, stream_.handle(), std::ref(gather));
  stream_.copy(received_->data(), device_received_->data(), Bytes{bytes * members()});
  stream_.record(done_);
  // Not CudaStream::synchronize: a family that is poisoned meanwhile is not waited for.
  for (int looks = 0; !done_.reached(); ++looks) {
    link_.family()->throw_if_poisoned();
    if (looks >= kLooksPerSleep) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  link_.family()->throw_if_poisoned();
}

void RecordExchange::greet(const char* operation, std::span<const std::byte> mine) {
  Greeting greeting{.bytes = mine.size(), .calls = std::exchange(calls_, 0), .digest = std::exchange(digest_, 0)};
  const std::string_view text(operation);
  text.copy(greeting.operation, sizeof greeting.operation - 1);
  std::copy_n(mine.data(), std::min(mine.size(), kInline), greeting.record);
  std::memcpy(sent_->data(), &greeting, sizeof greeting);
  exchange(operation, sizeof greeting);
  compare(operation);
}

void RecordExchange::compare(const char* operation) const {
  const Greeting& own = greeting_of(static_cast<std::size_t>(rank_));
  for (std::size_t member = 0; member < members(); ++member) {
    const Greeting& theirs = greeting_of(member);
    std::string difference;
    if (std::string_view(theirs.operation) != own.operation) {
      difference = fmt::format("rank {} calls {} while rank {} calls {}", world_ranks_[member], theirs.operation,
                               link_.family()->world_rank(), own.operation);
    } else if (theirs.bytes != own.bytes) {
      difference = fmt::format("rank {} calls it with bytes {}, rank {} with bytes {}", world_ranks_[member],
                               theirs.bytes, link_.family()->world_rank(), own.bytes);
    } else if (theirs.calls != own.calls || theirs.digest != own.digest) {
      difference =
          fmt::format("rank {} made other collectives since the last exchange than rank {} ({} and {} of them)",
                      world_ranks_[member], link_.family()->world_rank(), theirs.calls, own.calls);
    }
    if (difference.empty()) continue;
    link_.family()->poison(world_ranks_[member], operation, difference);
    link_.family()->throw_failure();
  }
}

void RecordExchange::visit(const char* operation, std::span<const std::byte> mine,
                           const std::function<void(int, std::span<const std::byte>)>& visit) {
  SHARDPLAN_CHECK(mine.size() <= kInline, "a record that is longer than can be visited");
  greet(operation, mine);
  for (std::size_t member = 0; member < members(); ++member) {
    visit(static_cast<int>(member), {greeting_of(member).record, mine.size()});
  }
}

void RecordExchange::all_gather(const char* operation, std::span<const std::byte> mine, std::span<std::byte> all) {
  SHARDPLAN_CHECK(all.size() == mine.size() * members(), "all_gather_bytes needs one record per rank");
  greet(operation, mine);
  const std::size_t first = std::min(mine.size(), kInline);
  for (std::size_t member = 0; member < members() && first > 0; ++member) {
    std::memcpy(all.data() + member * mine.size(), greeting_of(member).record, first);
  }
  for (std::size_t done = first; done < mine.size(); done += kChunk) {
    const std::size_t bytes = std::min(kChunk, mine.size() - done);
    std::memcpy(sent_->data(), mine.data() + done, bytes);
    exchange(operation, bytes);
    for (std::size_t member = 0; member < members(); ++member) {
      std::memcpy(all.data() + member * mine.size() + done, received_->data() + member * bytes, bytes);
    }
  }
}

}  // namespace shardplan::cuda
