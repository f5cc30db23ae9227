#include "offload/transfer_queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

bool overlap(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.data() < b.data() + b.size() && b.data() < a.data() + a.size();
}

}  // namespace

bool share_bytes(const Transfer& a, const Transfer& b) {
  return (a.store == b.store && a.block.index == b.block.index) || overlap(a.memory, b.memory);
}

TransferQueue::TransferQueue(const TransferOptions& options) : options_(options), entries_(options.tickets) {
  SHARDPLAN_CHECK(options.threads >= 0 && options.tickets > 0,
                  "a transfer queue has 0 threads or more, 1 ticket or more");
  threads_.reserve(static_cast<std::size_t>(options.threads));
  try {
    for (int i = 0; i < options.threads; ++i) threads_.emplace_back([this] { serve(); });
  } catch (...) {
    {
      const std::scoped_lock lock(mutex_);
      stop_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    throw;
  }
}

TransferQueue::~TransferQueue() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

std::exception_ptr TransferQueue::carry_out(const Transfer& transfer) {
  try {
    if (transfer.direction == Direction::read) {
      transfer.store->read(transfer.block, transfer.memory, transfer.step);
    } else {
      transfer.store->write(transfer.block, transfer.memory, transfer.step);
    }
    return nullptr;
  } catch (...) {
    return std::current_exception();
  }
}

Ticket TransferQueue::submit(const Transfer& transfer) {
  std::unique_lock lock(mutex_);
  const std::uint64_t bytes = transfer.memory.size();
  ended_.wait(lock, [&] { return bytes_under_way_ == 0 || bytes_under_way_ + bytes <= options_.in_flight.count(); });
  const auto entry =
      std::find_if(entries_.begin(), entries_.end(), [](const Entry& e) { return e.state == State::free; });
  SHARDPLAN_CHECK(entry != entries_.end(), fmt::format("all {} tickets of a transfer queue are open", entries_.size()));
  *entry = {.state = State::pending, .ticket = next_, .transfer = transfer, .error = nullptr};
  if (threads_.empty()) {
    entry->error = carry_out(transfer);
    entry->state = State::done;
    return next_++;
  }
  bytes_under_way_ += bytes;
  lock.unlock();
  work_.notify_one();
  return next_++;
}

TransferQueue::Entry& TransferQueue::entry_of(Ticket ticket) {
  const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& e) { return e.state != State::free && e.ticket == ticket; });
  SHARDPLAN_CHECK(entry != entries_.end(), fmt::format("ticket {} of a transfer queue is not open", ticket));
  return *entry;
}

void TransferQueue::wait(Ticket ticket) {
  std::unique_lock lock(mutex_);
  Entry& entry = entry_of(ticket);
  ended_.wait(lock, [&] { return entry.state == State::done; });
  const std::exception_ptr error = std::exchange(entry.error, nullptr);
  entry.state = State::free;
  lock.unlock();
  if (error) std::rethrow_exception(error);
}

// Whether one that was submitted earlier, and has not ended, shares bytes with it.
bool TransferQueue::must_wait(const Entry& entry) const {
  return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& other) {
    const bool earlier = other.ticket < entry.ticket;
    const bool open = other.state == State::pending || other.state == State::running;
    return earlier && open && share_bytes(other.transfer, entry.transfer);
  });
}

TransferQueue::Entry* TransferQueue::next_ready() {
  Entry* next = nullptr;
  for (Entry& entry : entries_) {
    if (entry.state != State::pending || (next != nullptr && next->ticket < entry.ticket)) continue;
    if (!must_wait(entry)) next = &entry;
  }
  return next;
}

// What has been submitted is carried out even when the queue is to end.
void TransferQueue::serve() {
  std::unique_lock lock(mutex_);
  const auto pending = [&] {
    return std::any_of(entries_.begin(), entries_.end(), [](const Entry& e) { return e.state == State::pending; });
  };
  while (true) {
    Entry* entry = nullptr;
    work_.wait(lock, [&] { return (entry = next_ready()) != nullptr || (stop_ && !pending()); });
    if (entry == nullptr) return;
    entry->state = State::running;
    const Transfer transfer = entry->transfer;
    lock.unlock();
    std::exception_ptr error = carry_out(transfer);
    lock.lock();
    entry->error = std::move(error);
    entry->state = State::done;
    bytes_under_way_ -= transfer.memory.size();
    ended_.notify_all();
    work_.notify_all();  // what had to wait for this one, or for the end
  }
}

}  // namespace shardplan
