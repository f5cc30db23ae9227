#include <fmt/format.h>

#include <utility>

#include "runtime/cpu_device.h"
#include "runtime/local_communicator.h"
#include "runtime/shared/shared_communicator.h"
#include "runtime/staged/staged_communicator.h"
#include "shard/c_api/callers_exchange.h"
#include "shard/c_api/handles.h"

namespace shardplan::c_api {
namespace {

// A year: sums of times stay far from the ends of their type.
constexpr std::uint64_t kLongestDeadline = std::uint64_t{365} * 24 * 3600 * 1000;

std::chrono::milliseconds deadline_of(std::uint64_t milliseconds) {
  if (milliseconds == 0 || milliseconds > kLongestDeadline) {
    throw ConfigError("deadline_milliseconds", "",
                      fmt::format("{}: expected 1 to {} (a year)", milliseconds, kLongestDeadline));
  }
  return std::chrono::milliseconds(milliseconds);
}

void make_local(int ranks, std::uint64_t deadline_milliseconds, shardplan_communicator** handles) {
  if (ranks < 1) throw ConfigError("ranks", "", fmt::format("{}: expected 1 or more", ranks));
  std::fill_n(&required(handles, "communicators"), ranks, nullptr);
  auto communicators = make_local_communicators(ranks, {.deadline = deadline_of(deadline_milliseconds)});
  const auto device = std::make_shared<CpuDevice>();
  std::vector<std::unique_ptr<shardplan_communicator>> made;
  for (auto& communicator : communicators) {
    auto state = std::make_shared<CommunicatorState>(CommunicatorState{device, std::move(communicator)});
    made.push_back(std::make_unique<shardplan_communicator>(shardplan_communicator{std::move(state)}));
  }
  for (std::size_t rank = 0; rank < made.size(); ++rank) handles[rank] = made[rank].release();
}

shardplan_communicator* handle_of(std::shared_ptr<Device> device, std::unique_ptr<Communicator> communicator) {
  return new shardplan_communicator{
      std::make_shared<CommunicatorState>(CommunicatorState{std::move(device), std::move(communicator)})};
}

void require_place(int rank, int size) {
  if (size < 1) throw ConfigError("size", "", fmt::format("{}: expected 1 or more", size));
  if (rank < 0 || rank >= size) throw ConfigError("rank", "", fmt::format("{}: expected 0 to {}", rank, size - 1));
}

shardplan_communicator* make_shared_memory(int rank, int size, std::uint64_t deadline_milliseconds,
                                           shardplan_exchange_records exchange, void* user) {
  require_place(rank, size);
  SHARDPLAN_CHECK(exchange != nullptr, "exchange is NULL");
  const auto blobs = [&](std::span<const std::byte> mine, std::span<std::byte> all) {
    require_success("exchange", exchange(user, mine.data(), mine.size(), all.data()));
  };
  auto communicator = make_shared_communicator(rank, size, blobs, {.deadline = deadline_of(deadline_milliseconds)});
  return handle_of(std::make_shared<CpuDevice>(HostPages::shareable), std::move(communicator));
}

shardplan_communicator* make_nccl(int rank, int size, int gpu, std::uint64_t deadline_milliseconds,
                                  shardplan_exchange_records exchange, void* user) {
  require_place(rank, size);
  if (gpu < 0) throw ConfigError("gpu", "", fmt::format("{}: expected 0 or more", gpu));
  SHARDPLAN_CHECK(exchange != nullptr || size == 1, "exchange is NULL");
  const CudaBackend& cuda = load_cuda_backend();
  std::shared_ptr<Device> device = cuda.make_device(gpu);
  NcclOptions options;
  options.rank = rank;
  options.size = size;
  options.deadline = deadline_of(deadline_milliseconds);
  options.all_gather = [=](std::span<const std::byte> mine, std::span<std::byte> all) {
    require_success("exchange", exchange(user, mine.data(), mine.size(), all.data()));
  };
  shardplan_communicator* handle = handle_of(std::move(device), cuda.make_communicator(gpu, options));
  handle->state->cuda = &cuda;
  return handle;
}

shardplan_communicator* make_over(const shardplan_transport& transport) {
  require_place(transport.rank, transport.size);
  SHARDPLAN_CHECK(transport.exchange != nullptr && transport.give_up != nullptr,
                  "the transport's exchange or give_up is NULL");
  auto exchange = std::make_unique<CallersExchange>(transport, deadline_of(transport.deadline_milliseconds));
  CallersExchange& made = *exchange;
  shardplan_communicator* handle =
      handle_of(std::make_shared<CpuDevice>(), make_staged_communicator(std::move(exchange)));
  made.release_at_end();
  return handle;
}

}  // namespace
}  // namespace shardplan::c_api

extern "C" {

using namespace shardplan::c_api;  // NOLINT(google-build-using-namespace): the functions below have C's names

shardplan_status shardplan_communicators_create_local(int32_t ranks, uint64_t deadline_milliseconds,
                                                      shardplan_communicator** communicators, shardplan_error* error) {
  return guarded(error, [&] { make_local(ranks, deadline_milliseconds, communicators); });
}

shardplan_status shardplan_communicator_create_shared(int32_t rank, int32_t size, uint64_t deadline_milliseconds,
                                                      shardplan_exchange_records exchange, void* user,
                                                      shardplan_communicator** communicator, shardplan_error* error) {
  return guarded(error, [&] {
    required(communicator, "communicator") = nullptr;
    *communicator = make_shared_memory(rank, size, deadline_milliseconds, exchange, user);
  });
}

shardplan_status shardplan_communicator_create_over(const shardplan_transport* transport,
                                                    shardplan_communicator** communicator, shardplan_error* error) {
  return guarded(error, [&] {
    required(communicator, "communicator") = nullptr;
    *communicator = make_over(taken(transport, "transport"));
  });
}

shardplan_status shardplan_communicator_create_nccl(int32_t rank, int32_t size, int32_t gpu,
                                                    uint64_t deadline_milliseconds, shardplan_exchange_records exchange,
                                                    void* user, shardplan_communicator** communicator,
                                                    shardplan_error* error) {
  return guarded(error, [&] {
    required(communicator, "communicator") = nullptr;
    *communicator = make_nccl(rank, size, gpu, deadline_milliseconds, exchange, user);
  });
}

void shardplan_communicator_free(shardplan_communicator* communicator) {
  delete communicator;
}

shardplan_status shardplan_communicator_abort(shardplan_communicator* communicator, const char* reason,
                                              shardplan_error* error) {
  return guarded(
      error, [&] { required(communicator, "communicator").state->communicator->abort(&required(reason, "reason")); });
}

}  // extern "C"
