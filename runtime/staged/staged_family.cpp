#include "runtime/staged/staged_family.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

constexpr std::string_view kSeparator = "\n";

std::string words_of(const StagedFamily::Failure& failure) {
  return fmt::format("{}{}{}{}{}", failure.world_rank, kSeparator, failure.operation, kSeparator, failure.problem);
}

// Calls that differ: it is the peer's fault, though all of its messages came.
struct Mismatch : PeerFailure {
  Mismatch(int peer, std::string its_operation, const std::string& problem)
      : PeerFailure(peer, Cause::other, problem), operation(std::move(its_operation)) {}
  std::string operation;
};

}  // namespace

StagedFamily::StagedFamily(std::unique_ptr<Exchange> exchange) : exchange_(std::move(exchange)) {
  const auto ranks = static_cast<std::size_t>(exchange_->size());
  calls_.resize(ranks);
  for (auto* sends : {&sends_, &call_sends_}) sends->reserve(ranks);
  for (auto* receives : {&receives_, &call_receives_}) receives->reserve(ranks);
}

StagedFamily::~StagedFamily() = default;

// Where the words are not a family's, the peer is to blame, for what it says.
StagedFamily::Failure StagedFamily::failure_of(const PeerFailure& failure, const char* operation) {
  if (const auto* mismatch = dynamic_cast<const Mismatch*>(&failure)) {
    return {failure.peer(), mismatch->operation, failure.what()};
  }
  if (failure.cause() != PeerFailure::Cause::gave_up) return {failure.peer(), operation, failure.what()};
  const std::string_view words = failure.what();
  constexpr std::size_t kNowhere = std::string_view::npos;
  const std::size_t rank_end = words.find(kSeparator);
  const std::size_t operation_end = rank_end == kNowhere ? kNowhere : words.find(kSeparator, rank_end + 1);
  const std::string number(words.substr(0, rank_end));
  int rank = -1;
  if (operation_end == kNowhere ||
      std::from_chars(number.data(), number.data() + number.size(), rank).ptr != number.data() + number.size()) {
    return {failure.peer(), "abort", std::string(words)};
  }
  return {rank, std::string(words.substr(rank_end + 1, operation_end - rank_end - 1)),
          std::string(words.substr(operation_end + 1))};
}

void StagedFamily::poison(const Failure& failure) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (poisoned_.load()) return;
    failure_ = failure;
    for (const auto& arenas : arenas_) {
      if (auto alive = arenas.lock()) kept_arenas_.push_back(std::move(alive));
    }
    poisoned_.store(true);
  }
  exchange_->give_up(words_of(failure));
}

void StagedFamily::throw_failure() const {
  const std::lock_guard lock(mutex_);
  throw CommunicationError(failure_.world_rank, failure_.operation, exchange_->deadline(), failure_.problem);
}

void StagedFamily::remember(const std::shared_ptr<ArenaGroup>& arenas) {
  const std::lock_guard lock(mutex_);
  std::erase_if(arenas_, [](const auto& known) { return known.expired(); });
  arenas_.push_back(arenas);
}

void StagedFamily::exchange_messages() {
  exchange_->exchange(sends_, receives_);
  sends_.clear();
  receives_.clear();
  throw_if_poisoned();
}

// Each rank begins with the one after it, so that not all send to the same one first.
void StagedFamily::meet(std::span<const int> world_ranks, std::uint64_t group, const CollectiveCall& call) {
  call_sends_.clear();
  call_receives_.clear();
  const auto member = static_cast<std::size_t>(std::find(world_ranks.begin(), world_ranks.end(), exchange_->rank()) -
                                               world_ranks.begin());
  calls_[member] = encode_call(call, group, next_id_);
  for (std::size_t step = 1; step < world_ranks.size(); ++step) {
    const std::size_t peer = (member + step) % world_ranks.size();
    call_sends_.push_back({world_ranks[peer], std::as_bytes(std::span(&calls_[member], 1))});
    call_receives_.push_back({world_ranks[peer], std::as_writable_bytes(std::span(&calls_[peer], 1))});
  }
  const auto look = [&] { compare(world_ranks, call); };
  exchange_->exchange_both({call_sends_, call_receives_}, std::ref(look), {sends_, receives_});
  sends_.clear();
  receives_.clear();
  throw_if_poisoned();
}

void StagedFamily::compare(std::span<const int> world_ranks, const CollectiveCall& mine) const {
  const CollectiveCall first = decode_call(calls_[0], mine);
  for (std::size_t member = 1; member < world_ranks.size(); ++member) {
    const CollectiveCall call = decode_call(calls_[member], mine);
    std::string difference = difference_of(call, world_ranks[member], first, world_ranks[0]);
    if (difference.empty() && calls_[member].group != calls_[0].group) {
      difference = fmt::format("rank {} calls {} of another group than rank {}", world_ranks[member], call.operation,
                               world_ranks[0]);
    }
    if (!difference.empty()) throw Mismatch(world_ranks[member], call.operation, difference);
  }
}

std::uint64_t StagedFamily::agree_on_id(std::size_t members) {
  std::uint64_t id = next_id_;
  for (std::size_t member = 0; member < members; ++member) id = std::max(id, calls_[member].next_id);
  next_id_ = id + 1;
  return id;
}

}  // namespace shardplan
