// What offloading optimizer states costs a step: in host memory, and in a file.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "offload/file_tier.h"
#include "runtime/cpu_device.h"
#include "runtime/local_communicator.h"
#include "shard/zero_optimizer.h"
#include "tools/bench/bench_folder.h"
#include "tools/bench/cases.h"
#include "tools/bench/fio.h"
#include "tools/bench/limit.h"

namespace shardplan::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One rank with one unit of `elements` parameters in bf16-mixed, which takes steps.
class Rank {
 public:
  Rank(std::size_t elements, const std::string& offload, const OffloadOptions& files = {}) {
    catalog_.runs.push_back({.name = "unit", .tensors = {{.name = "weight", .shape = {elements}}}});
    Setup setup;
    if (!offload.empty()) setup.offload = parse_offload(offload).offload;
    plan_ = make_step_plan(catalog_, setup);
    world_ = std::move(make_local_communicators(1).front());
    ZeroOptions options;
    options.groups = {{.match = "*", .values = {.learning_rate = 1e-7}}};
    options.offload = files;
    options.initial_values = [](const TensorRange& range, std::span<float> values) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>((range.first + i) % 97) * 0.01F - 0.5F;
      }
    };
    optimizer_ = std::make_unique<ZeroOptimizer>(catalog_, plan_, device_,
                                                 Communicators{.world = world_.get(), .shard_group = world_.get()},
                                                 std::move(options));
  }

  // Of step() alone: gradients are there before.
  double step_seconds() {
    optimizer_->begin(ProgramKind::last_micro_batch);
    optimizer_->enter(0, Pass::forward);
    optimizer_->leave(0);
    const UnitViews views = optimizer_->enter(0, Pass::backward);
    auto* const gradient = reinterpret_cast<std::uint16_t*>(views.gradients[0].data);
    std::fill_n(gradient, views.gradients[0].elements, std::uint16_t{0x3c00});  // 2^-7 in bf16
    optimizer_->leave(0);
    const auto start = Clock::now();
    optimizer_->step();
    return seconds_since(start);
  }

  const StepPlan& plan() const { return plan_; }

 private:
  Catalog catalog_;
  StepPlan plan_;
  CpuDevice device_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<ZeroOptimizer> optimizer_;
};

// The same bytes in blocks of the same size read and written at once, past the page cache, without update, checksum or
// order: by fio where it is installed, else by a loop of our own, two threads for each direction.
class Disk {
 public:
  Disk(const StepPlan& plan, const std::string& folder)
      : file_({.path = folder + "/limit.tier", .bytes = plan.file.bytes}),
        block_(std::min(plan.file.bytes, bytes_for(DType::f32, plan.blocks.block_elements))),
        buffers_(kThreads * block_, "host") {
    loop_seconds();  // the space that was reserved is written for the first time
  }

  std::optional<double> by_fio() const {
    return fio_seconds(fmt::format(
        "--filename={} --size={} --bs={} --ioengine=libaio --iodepth=4 --thread --fallocate=none --overwrite=1 "
        "--name=reads --rw=read --name=writes --rw=write",
        file_.name(), file_.bytes().count(), block_.count()));
  }

  double loop_seconds() {
    const auto start = Clock::now();
    std::vector<std::thread> threads;
    for (std::uint64_t thread = 0; thread < kThreads; ++thread) threads.emplace_back([this, thread] { move(thread); });
    for (std::thread& thread : threads) thread.join();
    return seconds_since(start);
  }

 private:
  static constexpr std::uint64_t kThreads = 4;

  // Half of the threads read every second block each, the others write.
  void move(std::uint64_t thread) {
    const std::span<std::byte> buffer(buffers_.data() + (thread * block_).count(), block_.count());
    const std::uint64_t end = file_.bytes().count();
    for (std::uint64_t at = thread / 2 * block_.count(); at < end; at += kThreads / 2 * block_.count()) {
      const std::span<std::byte> part = buffer.first(std::min(block_.count(), end - at));
      if (thread % 2 == 0) {
        file_.read(at, part);
      } else {
        file_.write(at, part);
      }
    }
  }

  FileTier file_;
  Bytes block_;
  HostMapping buffers_;
};

void offload_step_host(benchmark::State& state) {
  const auto elements = static_cast<std::size_t>(state.range(0));
  Rank plain(elements, "");
  Rank offloaded(elements, "optimizer=cpu");
  compare(
      state, "ratio_to_limit", elements, [&] { return plain.step_seconds(); },
      [&] { return offloaded.step_seconds(); });
}

void step_with_file(benchmark::State& state, FileIo io) {
  const auto elements = static_cast<std::size_t>(state.range(0));
  const Folder folder;
  Rank plain(elements, "");
  Rank offloaded(elements, "optimizer=file", {.folder = folder.path(), .io = io});
  Disk disk(offloaded.plan(), folder.path());
  double update = 0;
  double disk_alone = 0;
  double loop_alone = 0;
  bool limit_is_fio = false;
  std::vector<double> to_loop;
  compare(
      state, "ratio_to_limit", elements,
      [&] {
        update = plain.step_seconds();
        loop_alone = disk.loop_seconds();
        const std::optional<double> by_fio = disk.by_fio();
        limit_is_fio = by_fio.has_value();
        disk_alone = by_fio.value_or(loop_alone);
        return std::max(update, disk_alone);
      },
      [&] {
        const double seconds = offloaded.step_seconds();
        to_loop.push_back(std::max(update, loop_alone) / seconds);
        return seconds;
      });
  state.counters["ratio_to_loop"] = median(to_loop);
  state.counters["last_update_seconds"] = update;
  state.counters["last_disk_seconds"] = disk_alone;
  state.counters["limit_is_fio"] = limit_is_fio ? 1 : 0;
  state.counters["file_bytes"] = static_cast<double>(offloaded.plan().file.bytes.count());
}

void offload_step_file(benchmark::State& state) {
  step_with_file(state, FileIo::pread);
}

void offload_step_io_uring(benchmark::State& state) {
  step_with_file(state, FileIo::io_uring);
}

}  // namespace

void register_offload() {
  constexpr std::int64_t kElements = 64'000'000;
  register_pairs("offload_step_host", offload_step_host, "elements", kElements);
  register_pairs("offload_step_file", offload_step_file, "elements", kElements);
  register_pairs("offload_step_io_uring", offload_step_io_uring, "elements", kElements);
}

}  // namespace shardplan::bench
