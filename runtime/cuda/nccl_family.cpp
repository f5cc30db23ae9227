#include "runtime/cuda/nccl_family.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "runtime/cuda/error.h"

namespace shardplan::cuda {
namespace {

constexpr std::chrono::milliseconds kWatchEvery{5};
constexpr std::chrono::microseconds kAskAgain{20};

}  // namespace

NcclFamily::NcclFamily(int device, int world_rank, std::chrono::milliseconds deadline)
    : device_(device), world_rank_(world_rank), deadline_(deadline), watch_([this] { watch(); }) {}

NcclFamily::~NcclFamily() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  watch_.join();
}

void NcclFamily::enroll(NcclLink& link) {
  const std::lock_guard lock(mutex_);
  links_.push_back(&link);
}

void NcclFamily::leave(NcclLink& link) {
  const std::lock_guard lock(mutex_);
  std::erase(links_, &link);
}

void NcclFamily::poison(int rank, const std::string& operation, const std::string& problem) {
  const std::lock_guard lock(mutex_);
  poison_locked(rank, operation, problem);
}

void NcclFamily::poison_locked(int rank, const std::string& operation, const std::string& problem) {
  if (poisoned_.load()) return;
  failed_rank_ = rank;
  failed_operation_ = operation;
  problem_ = problem;
  poisoned_.store(true);
  for (NcclLink* link : links_) link->abort();
}

void NcclFamily::throw_failure() const {
  const std::lock_guard lock(mutex_);
  throw CommunicationError(failed_rank_, failed_operation_, deadline_, problem_);
}

void NcclFamily::watch() {
  cudaSetDevice(device_);  // if it fails, so does the first look
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, kWatchEvery, [this] { return stopping_; })) {
    if (poisoned_.load()) continue;
    std::optional<NcclLink::Problem> problem;
    for (NcclLink* link : links_) {
      if (!problem) problem = link->look();
    }
    if (problem) poison_locked(-1, problem->operation, problem->text);
  }
}

NcclLink::NcclLink(std::shared_ptr<NcclFamily> family, const ncclUniqueId& id, int rank, int size)
    : family_(std::move(family)) {
  const OnDevice on(family_->device());
  for (Pending& pending : pending_) {
    pending.begin = std::make_unique<CudaEvent>(family_->device());
    pending.end = std::make_unique<CudaEvent>(family_->device());
  }
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t result = nccl().CommInitRankConfig(&comm_, size, id, rank, &config);
  try {
    settle("connect", result);
    family_->enroll(*this);
  } catch (...) {
    abort();
    throw;
  }
}

NcclLink::~NcclLink() {
  family_->leave(*this);
  if (comm_ == nullptr) return;
  const auto end = Clock::now() + family_->deadline();
  ncclResult_t result = nccl().CommFinalize(comm_);
  while (result == ncclInProgress && Clock::now() < end) {
    std::this_thread::sleep_for(kAskAgain);
    if (nccl().CommGetAsyncError(comm_, &result) != ncclSuccess) result = ncclInternalError;
  }
  // Nothing is left to tell: whoever leaves has nobody to throw to.
  if (result == ncclSuccess) {
    nccl().CommDestroy(comm_);
  } else {
    nccl().CommAbort(comm_);
  }
}

void NcclLink::abort() noexcept {
  const std::lock_guard lock(mutex_);
  if (comm_ != nullptr) nccl().CommAbort(std::exchange(comm_, nullptr));
}

std::string NcclLink::text_of(ncclResult_t result) const {
  const char* detail = comm_ == nullptr ? "" : nccl().GetLastError(comm_);
  const bool has_detail = detail != nullptr && *detail != '\0';
  return fmt::format("NCCL: {}{}{}", nccl().GetErrorString(result), has_detail ? ": " : "", has_detail ? detail : "");
}

// Until NCCL has done what it was asked for. The link may be aborted meanwhile.
void NcclLink::settle(const char* operation, ncclResult_t result) {
  const auto end = Clock::now() + family_->deadline();
  while (true) {
    std::string problem;
    {
      const std::lock_guard lock(mutex_);
      if (result == ncclSuccess) return;
      if (result != ncclInProgress) {
        problem = text_of(result);
      } else if (Clock::now() > end) {
        problem = "a rank has not joined before the deadline";
      } else if (comm_ != nullptr) {
        const ncclResult_t asked = nccl().CommGetAsyncError(comm_, &result);
        if (asked != ncclSuccess) result = asked;
        if (result != ncclInProgress) continue;
      }
    }
    if (!problem.empty()) family_->poison(-1, operation, problem);
    family_->throw_if_poisoned();
    std::this_thread::sleep_for(kAskAgain);
  }
}

NcclLink::Pending& NcclLink::place_for_next() {
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (count_ < pending_.size()) return pending_[(first_ + count_) % pending_.size()];
    }
    family_->throw_if_poisoned();
    std::this_thread::sleep_for(kAskAgain);  // the watch takes the finished ones out
  }
}

void NcclLink::queue(const char* operation, cudaStream_t stream, const Enqueue& enqueue) {
  family_->throw_if_poisoned();
  Pending& pending = place_for_next();
  check(cudaEventRecord(pending.begin->handle(), stream), "cudaEventRecord");
  {
    const std::lock_guard lock(mutex_);
    if (comm_ != nullptr) {
      answer_ = nccl().GroupStart();
      enqueue(comm_);
      take(nccl().GroupEnd());
    }
  }
  family_->throw_if_poisoned();
  settle(operation, answer_);
  check(cudaEventRecord(pending.end->handle(), stream), "cudaEventRecord");
  const std::lock_guard lock(mutex_);
  pending.operation = operation;
  pending.started.reset();
  ++count_;
}

std::optional<NcclLink::Problem> NcclLink::look() {
  const std::lock_guard lock(mutex_);
  if (comm_ == nullptr) return std::nullopt;
  const char* const operation = count_ > 0 ? pending_[first_].operation : "queue";
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = nccl().CommGetAsyncError(comm_, &state);
  for (const ncclResult_t result : {asked, state}) {
    if (result != ncclSuccess && result != ncclInProgress) return Problem{operation, text_of(result)};
  }
  try {
    for (; count_ > 0; first_ = (first_ + 1) % pending_.size(), --count_) {
      Pending& pending = pending_[first_];
      if (pending.end->reached()) continue;
      if (!pending.begin->reached()) break;
      if (!pending.started) pending.started = Clock::now();
      if (Clock::now() - *pending.started < family_->deadline()) break;
      return Problem{pending.operation, "the ranks have not completed it before the deadline"};
    }
  } catch (const std::exception& error) {
    return Problem{operation, error.what()};
  }
  return std::nullopt;
}

}  // namespace shardplan::cuda
