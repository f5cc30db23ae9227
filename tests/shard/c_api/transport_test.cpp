// The caller's own communicators: a transport of C functions between threads, and shared memory between processes. Both
// give the bits of the library's own threads.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/shard/c_api/run.h"

namespace shardplan::test {
namespace {

// Mail between threads.
struct Office {
  std::mutex mutex;
  std::condition_variable arrived;
  std::map<std::pair<int, int>, std::deque<std::vector<char>>> mail;  // from, to
  int gave_up = -1;
  std::string words;
  int released = 0;
};

struct Desk {
  Office& office;
  int rank;
  std::chrono::milliseconds deadline;
};

int exchange_mail(void* user, const shardplan_message* sends, std::size_t send_count, const shardplan_message* receives,
                  std::size_t receive_count, shardplan_peer_failure* failure) {
  auto& desk = *static_cast<Desk*>(user);
  Office& office = desk.office;
  std::unique_lock lock(office.mutex);
  for (std::size_t i = 0; i < send_count; ++i) {
    const auto* data = static_cast<const char*>(sends[i].data);
    office.mail[{desk.rank, sends[i].peer}].emplace_back(data, data + sends[i].bytes);
  }
  office.arrived.notify_all();
  for (std::size_t i = 0; i < receive_count; ++i) {
    auto& box = office.mail[{receives[i].peer, desk.rank}];
    const bool in_time =
        office.arrived.wait_for(lock, desk.deadline, [&] { return !box.empty() || office.gave_up >= 0; });
    failure->peer = receives[i].peer;
    if (!in_time) {
      std::strcpy(failure->text, "no mail");
      return 1;
    }
    if (box.empty()) {
      failure->peer = office.gave_up;
      failure->gave_up = 1;
      std::strncpy(failure->text, office.words.c_str(), sizeof failure->text - 1);
      return 1;
    }
    EXPECT_EQ(box.front().size(), receives[i].bytes);
    std::memcpy(receives[i].data, box.front().data(), receives[i].bytes);
    box.pop_front();
  }
  return 0;
}

void give_up(void* user, const char* words) {
  auto& desk = *static_cast<Desk*>(user);
  const std::lock_guard lock(desk.office.mutex);
  if (desk.office.gave_up < 0) {
    desk.office.gave_up = desk.rank;
    desk.office.words = words;
  }
  desk.office.arrived.notify_all();
}

void release(void* user) {
  auto& desk = *static_cast<Desk*>(user);
  const std::lock_guard lock(desk.office.mutex);
  ++desk.office.released;
}

CommunicatorHandle communicator_over(Desk& desk, int size) {
  shardplan_transport transport{};
  transport.struct_size = sizeof transport;
  transport.user = &desk;
  transport.rank = desk.rank;
  transport.size = size;
  transport.deadline_milliseconds = static_cast<std::uint64_t>(desk.deadline.count());
  transport.exchange = exchange_mail;
  transport.give_up = give_up;
  transport.release = release;
  shardplan_communicator* made = nullptr;
  shardplan_error error{};
  EXPECT_OK(shardplan_communicator_create_over(&transport, &made, &error), error);
  return CommunicatorHandle(made);
}

std::string options_of(int ranks, int stage, const char* transport, int replicate = 1) {
  return R"({"precision": "bf16-mixed", "grad_accum": 2, "cadence": "micro_batch", "reduction_group": )" +
         std::to_string(ranks / replicate) + R"(, "world_size": )" + std::to_string(ranks) + R"(, "replicate": )" +
         std::to_string(replicate) + R"(, "zero_stage": )" + std::to_string(stage) + R"(, "transport": ")" + transport +
         "\"}";
}

std::vector<float> two_steps(const Rank& rank) {
  for (std::uint64_t step = 0; step < 2; ++step) run_step(rank, Client::enters_units, step, 2);
  return parameters_of(rank);
}

std::vector<float> by_threads(const std::string& options, int ranks) {
  std::vector<float> result;
  const CatalogHandle catalog = small_catalog();
  with_optimizers(*plan_of(*catalog, options), ranks, [&](const Rank& rank) {
    const std::vector<float> mine = two_steps(rank);
    if (rank.rank == 0) result = mine;
  });
  return result;
}

OptimizerHandle optimizer_on(const shardplan_plan& plan, shardplan_communicator& world) {
  shardplan_optimizer* made = nullptr;
  shardplan_error error{};
  EXPECT_OK(shardplan_optimizer_create(&plan, "cpu", &world, initial_values, nullptr, &made, &error), error);
  return OptimizerHandle(made);
}

TEST(CApiTransport, TheCallersOwnGivesTheSameBitsAtEveryStage) {
  const CatalogHandle catalog = small_catalog();
  for (const auto& [ranks, replicate] : {std::pair{3, 1}, {4, 2}}) {
    const std::vector<float> expected = by_threads(options_of(ranks, 0, "direct", replicate), ranks);
    for (int stage = 0; stage < 4; ++stage) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, stage " + std::to_string(stage));
      const PlanHandle plan = plan_of(*catalog, options_of(ranks, stage, "staged", replicate));
      Office office;
      std::vector<std::thread> threads;
      for (int rank = 0; rank < ranks; ++rank) {
        threads.emplace_back([&, rank, size = ranks] {
          Desk desk{office, rank, std::chrono::seconds(20)};
          CommunicatorHandle world = communicator_over(desk, size);
          OptimizerHandle optimizer = optimizer_on(*plan, *world);
          EXPECT_EQ(two_steps({optimizer.get(), rank}), expected);
          world.reset();
          optimizer.reset();
        });
      }
      for (std::thread& thread : threads) thread.join();
      EXPECT_EQ(office.released, ranks);
    }
  }
}

TEST(CApiTransport, APlanThatReadsPeersIsRefused) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, options_of(2, 1, "direct"));
  Office office;
  const auto refuse = [&](int rank) {
    Desk desk{office, rank, std::chrono::seconds(20)};
    const CommunicatorHandle world = communicator_over(desk, 2);
    shardplan_optimizer* optimizer = nullptr;
    shardplan_error error{};
    EXPECT_EQ(shardplan_optimizer_create(plan.get(), "cpu", world.get(), initial_values, nullptr, &optimizer, &error),
              SHARDPLAN_CONFIG_ERROR);
    EXPECT_NE(std::string(error.message).find("options: transport: "), std::string::npos) << error.message;
  };
  std::thread other(refuse, 1);
  refuse(0);
  other.join();
}

// The error of rank 0's optimizer, of two ranks, where rank 1 does something else.
shardplan_error error_of(const std::function<void(Desk&)>& other_rank, std::chrono::milliseconds deadline) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, options_of(2, 1, "staged"));
  Office office;
  std::thread other([&] {
    Desk desk{office, 1, deadline};
    other_rank(desk);
  });
  Desk desk{office, 0, deadline};
  const CommunicatorHandle world = communicator_over(desk, 2);
  shardplan_optimizer* optimizer = nullptr;
  shardplan_error error{};
  EXPECT_EQ(shardplan_optimizer_create(plan.get(), "cpu", world.get(), initial_values, nullptr, &optimizer, &error),
            SHARDPLAN_COMMUNICATION_ERROR);
  other.join();
  return error;
}

TEST(CApiTransport, WhatItSaysOfAPeerIsTold) {
  const shardplan_error error = error_of([](Desk&) {}, std::chrono::milliseconds(100));
  EXPECT_EQ(error.rank, 1);
  EXPECT_NE(std::string(error.message).find("no mail"), std::string::npos) << error.message;
}

TEST(CApiTransport, APeerThatGivesUpSaysWhy) {
  const auto quit = [](Desk& desk) {
    const CommunicatorHandle world = communicator_over(desk, 2);
    shardplan_error error{};
    EXPECT_OK(shardplan_communicator_abort(world.get(), "no data left", &error), error);
  };
  const shardplan_error error = error_of(quit, std::chrono::seconds(20));
  EXPECT_EQ(error.rank, 1);
  EXPECT_NE(std::string(error.message).find("no data left"), std::string::npos) << error.message;
  // What ranks tell each other in one text has been taken apart.
  EXPECT_EQ(std::string(error.message).find_first_of("\x1f\x1e\n|"), std::string::npos) << error.message;
}

TEST(CApiTransport, ATableThatCannotBe) {
  shardplan_transport transport{};
  shardplan_communicator* made = nullptr;
  shardplan_error error{};
  EXPECT_EQ(shardplan_communicator_create_over(nullptr, &made, &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_communicator_create_over(&transport, &made, &error), SHARDPLAN_BUG);
  transport.struct_size = sizeof transport;
  EXPECT_EQ(shardplan_communicator_create_over(&transport, &made, &error), SHARDPLAN_CONFIG_ERROR);
  transport.size = 2;
  transport.rank = 2;
  EXPECT_EQ(shardplan_communicator_create_over(&transport, &made, &error), SHARDPLAN_CONFIG_ERROR);
  transport.rank = 1;
  EXPECT_EQ(shardplan_communicator_create_over(&transport, &made, &error), SHARDPLAN_BUG);
  EXPECT_STRNE(error.message, "");
}

// Two processes: an all-gather over a pair of sockets.
struct Pair {
  int socket = -1;
  int rank = 0;
};

int gather_over_socket(void* user, const void* mine, std::size_t bytes, void* all) {
  const auto& pair = *static_cast<const Pair*>(user);
  auto* records = static_cast<char*>(all);
  std::memcpy(records + static_cast<std::size_t>(pair.rank) * bytes, mine, bytes);
  if (write(pair.socket, mine, bytes) != static_cast<ssize_t>(bytes)) return 1;
  char* other = records + static_cast<std::size_t>(1 - pair.rank) * bytes;
  return recv(pair.socket, other, bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes) ? 0 : 1;
}

bool train_in_process(Pair pair, int stage, const std::vector<float>& expected) {
  shardplan_communicator* made = nullptr;
  shardplan_error error{};
  EXPECT_OK(shardplan_communicator_create_shared(pair.rank, 2, 20'000, gather_over_socket, &pair, &made, &error),
            error);
  const CommunicatorHandle world(made);
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, options_of(2, stage, "direct"));
  if (made == nullptr) return false;
  const OptimizerHandle optimizer = optimizer_on(*plan, *world);
  EXPECT_EQ(two_steps({optimizer.get(), pair.rank}), expected);
  return !testing::Test::HasFailure();
}

TEST(CApiTransport, ProcessesThatShareMemoryGiveTheSameBits) {
  const std::vector<float> expected = by_threads(options_of(2, 0, "direct"), 2);
  for (int stage = 0; stage < 4; ++stage) {
    SCOPED_TRACE(stage);
    int sockets[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    const pid_t child = fork();
    if (child == 0) _exit(train_in_process({sockets[1], 1}, stage, expected) ? 0 : 1);
    ASSERT_GT(child, 0);
    EXPECT_TRUE(train_in_process({sockets[0], 0}, stage, expected));
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    close(sockets[0]);
    close(sockets[1]);
  }
}

TEST(CApiTransport, AnExchangeOfRecordsThatFailsIsTold) {
  const auto fails = [](void*, const void*, std::size_t, void*) { return 5; };
  shardplan_communicator* made = nullptr;
  shardplan_error error{};
  EXPECT_EQ(shardplan_communicator_create_shared(0, 2, 1000, fails, nullptr, &made, &error), SHARDPLAN_CALLBACK_ERROR);
  EXPECT_EQ(error.callback_result, 5);
  EXPECT_EQ(shardplan_communicator_create_shared(2, 2, 1000, fails, nullptr, &made, &error), SHARDPLAN_CONFIG_ERROR);
  EXPECT_EQ(shardplan_communicator_create_shared(0, 2, 1000, nullptr, nullptr, &made, &error), SHARDPLAN_BUG);
}

}  // namespace
}  // namespace shardplan::test
