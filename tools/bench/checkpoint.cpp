// What saving and loading a checkpoint takes of a disk's bandwidth.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/files/posix_files.h"
#include "runtime/local_communicator.h"
#include "shard/checkpoint/checkpoint.h"
#include "shard/checkpoint/folder.h"
#include "tools/bench/bench_folder.h"
#include "tools/bench/cases.h"
#include "tools/bench/fio.h"
#include "tools/bench/limit.h"

namespace shardplan::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kBlock = 8 << 20;  // as a save writes: SaveOptions::memory of 64 MiB

double seconds_of(const std::function<void()>& act) {
  const auto start = Clock::now();
  act();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One rank in fp32: 12 bytes per parameter, in tensors of 16 MiB and less.
class Rank {
 public:
  explicit Rank(std::uint64_t bytes) {
    constexpr std::uint64_t kWidth = 2048;
    const std::uint64_t layers = bytes / (12 * (kWidth * kWidth + kWidth));
    catalog_.runs.push_back(
        {.name = "layers",
         .numbered = true,
         .count = layers,
         .tensors = {{.name = "weight", .shape = {kWidth, kWidth}}, {.name = "norm", .shape = {kWidth}}}});
    Setup setup;
    setup.policy = policy_named("fp32");
    world_ = std::move(make_local_communicators(1).front());
    ZeroOptions options;
    options.initial_values = [](const TensorRange& range, std::span<float> values) {
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((range.first + i) % 8191) * 0.001F;
    };
    plan_ = make_step_plan(catalog_, setup);
    optimizer_ = std::make_unique<ZeroOptimizer>(
        catalog_, plan_, device_, Communicators{.world = world_.get(), .shard_group = world_.get()}, options);
  }

  std::string save(Files& files, const std::string& folder) {
    return save_checkpoint(*optimizer_, *world_, files, folder);
  }
  void load(Files& files, const std::string& checkpoint) {
    SHARDPLAN_CHECK(!load_checkpoint(*optimizer_, *world_, files, checkpoint).name.empty(), "no whole checkpoint");
  }

 private:
  Catalog catalog_;
  StepPlan plan_;
  CpuDevice device_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<ZeroOptimizer> optimizer_;
};

// As many bytes past the page cache, in order, by one thread.
double write_seconds(const std::string& path, std::uint64_t bytes) {
  PosixFiles files;
  const FileBuffer buffer(kBlock);
  std::fill(buffer.bytes().begin(), buffer.bytes().end(), std::byte{0x5a});
  const double seconds = seconds_of([&] {
    const std::unique_ptr<OutputFile> file = files.create(path);
    file->reserve(bytes);
    for (std::uint64_t at = 0; at < bytes; at += kBlock) file->write(buffer.bytes());
    file->sync();
  });
  return seconds;
}

double read_seconds(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (file < 0) throw IoError(path, 0, errno, "cannot be opened past the page cache");
  const FileBuffer buffer(kBlock);
  const double seconds = seconds_of([&] {
    while (::read(file, buffer.bytes().data(), kBlock) > 0) {
    }
  });
  ::close(file);
  return seconds;
}

// The same bytes in the same blocks by fio; of writing, with an fsync at the end.
std::optional<double> by_fio(const char* direction, const std::string& path, std::uint64_t bytes) {
  return fio_seconds(fmt::format("--name=limit --filename={} --rw={} --ioengine=psync --bs={} --size={} --end_fsync=1",
                                 path, direction, kBlock, bytes / kBlock * kBlock));
}

// What is cached of a folder's files is forgotten.
void forget(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const int file = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;
    ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    ::close(file);
  }
}

// Turns of the limit, fio and the candidate. Each is as often the first: a disk may be slower after a lot of work.
void take_turns(benchmark::State& state, std::uint64_t bytes, const std::function<double()>& limit,
                const std::function<std::optional<double>()>& fio, const std::function<double()>& candidate) {
  std::vector<double> of_limit;
  std::vector<double> of_fio;
  std::vector<double> seconds;
  candidate();
  std::size_t first = 0;
  for ([[maybe_unused]] auto _ : state) {
    double allowed = 0;
    std::optional<double> by_fio;
    double taken = 0;
    const std::array<std::function<void()>, 3> turns{[&] { allowed = limit(); }, [&] { by_fio = fio(); },
                                                     [&] { taken = candidate(); }};
    for (std::size_t i = 0; i < turns.size(); ++i) turns[(first + i) % turns.size()]();
    ++first;
    seconds.push_back(taken);
    of_limit.push_back(allowed / taken);
    if (by_fio) of_fio.push_back(*by_fio / taken);
    state.SetIterationTime(taken);
  }
  state.counters["bytes_per_second"] = static_cast<double>(bytes) / median(seconds);
  state.counters["ratio_to_limit"] = median(of_limit);
  if (!of_fio.empty()) {
    state.counters["ratio_to_fio"] = median(of_fio);
    state.counters["least_ratio_to_fio"] = *std::min_element(of_fio.begin(), of_fio.end());
    state.counters["most_ratio_to_fio"] = *std::max_element(of_fio.begin(), of_fio.end());
  }
}

void checkpoint_save(benchmark::State& state) {
  const auto bytes = static_cast<std::uint64_t>(state.range(0));
  const Folder folder;
  const std::string path = folder.path() + "/limit";
  PosixFiles files;
  Rank rank(bytes);
  const auto removed = [&](auto seconds) {
    std::filesystem::remove(path);
    return seconds;
  };
  take_turns(
      state, bytes, [&] { return removed(write_seconds(path, bytes)); },
      [&] { return removed(by_fio("write", path, bytes)); },
      [&] {
        const double seconds = seconds_of([&] { rank.save(files, folder.path() + "/saved"); });
        std::filesystem::remove_all(folder.path() + "/saved");
        return seconds;
      });
}

void checkpoint_load(benchmark::State& state) {
  const auto bytes = static_cast<std::uint64_t>(state.range(0));
  const Folder folder;
  const std::string path = folder.path() + "/limit";
  PosixFiles files;
  Rank rank(bytes);
  const std::string saved = join_path(folder.path(), rank.save(files, folder.path()));
  write_seconds(path, bytes);
  take_turns(
      state, bytes, [&] { return read_seconds(path); }, [&] { return by_fio("read", path, bytes); },
      [&] {
        forget(saved);
        return seconds_of([&] { rank.load(files, saved); });
      });
}

}  // namespace

void register_checkpoints() {
  constexpr std::int64_t kBytes = 1'200'000'000;
  register_pairs("checkpoint_save", checkpoint_save, "bytes", kBytes);
  register_pairs("checkpoint_load", checkpoint_load, "bytes", kBytes);
}

}  // namespace shardplan::bench
