#include "tools/simulate/simulation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>

#include "runtime/recording_device.h"
#include "shard/zero_optimizer.h"
#include "tools/simulate/offload_costs.h"

namespace shardplan {
namespace {

using Clock = std::chrono::steady_clock;

// What one rank does: makes its optimizer, and takes steps.
class Client {
 public:
  Client(const Model& model, const StepPlan& plan, const SimulationOptions& options,
         const std::vector<UnitRunSeconds>& seconds, const Costs& costs)
      : model_(model), plan_(plan), options_(options), seconds_(seconds), costs_(costs) {}

  void run(VirtualRank& rank, SimulatedRank& result) const {
    // The optimizer's own memory is counted by itself, and with the client's.
    RecordingDevice whole(rank.device());
    RecordingDevice device(static_cast<Device&>(whole));
    const MemoryReport report(device, whole, result);
    Communicator& world = rank.communicator();
    const RankPlace place = place_of_rank(plan_.layout, static_cast<std::uint64_t>(rank.rank()));
    Communicators groups{.world = &world, .shard_group = &world};
    std::unique_ptr<Communicator> shard_group;
    std::unique_ptr<Communicator> replicas;
    if (plan_.layout.replicas > 1) {
      shard_group = world.split(static_cast<int>(place.replica), world.rank());
      replicas = world.split(static_cast<int>(place.shard), world.rank());
      groups.shard_group = shard_group.get();
      groups.replicas = replicas.get();
    }
    const LinkKernels link_kernels(rank, costs_);
    RecordingTier* file = nullptr;
    ZeroOptimizer optimizer(model_.catalog, plan_, device, groups, optimizer_options(rank, device, link_kernels, file));
    const FileReport file_report(file, result);
    std::optional<BookedClient> booked;
    if (options_.client != nullptr) booked.emplace(*options_.client, whole);
    world.barrier();
    for (std::uint64_t step = 0; step < options_.steps; ++step) {
      rank.settle();
      const double begin = rank.latest();
      const VirtualOutcome before = rank.so_far();
      train_step(rank, optimizer, booked ? &*booked : nullptr);
      rank.settle();
      const VirtualOutcome& after = rank.so_far();
      result.sent = after.sent - before.sent;
      result.operations = after.operations - before.operations;
      result.step_seconds = rank.latest() - begin;
      result.compute_seconds = after.computing_seconds - before.computing_seconds;
      result.exposed_seconds = after.exposed_seconds - before.exposed_seconds;
      result.waiting_seconds = after.waiting_seconds - before.waiting_seconds;
      result.other_seconds = after.idle_seconds - before.idle_seconds;
      result.communication_seconds = after.communication_seconds - before.communication_seconds;
    }
  }

 private:
  // Says what was recorded at the end, however the rank ends.
  class MemoryReport {
   public:
    MemoryReport(const RecordingDevice& device, const RecordingDevice& whole, SimulatedRank& result)
        : device_(device), whole_(whole), result_(result) {}
    ~MemoryReport() {
      const RecordingDevice::Report report = device_.report(MemoryTier::device);
      result_.arena = report.high_water;
      result_.live_peak = report.live_peak;
      const RecordingDevice::Report host = device_.report(MemoryTier::pinned_host);
      result_.host_arena = host.high_water;
      result_.host_live_peak = host.live_peak;
      result_.peak_allocated = whole_.report(MemoryTier::device).held_peak;
    }
    MemoryReport(const MemoryReport&) = delete;
    MemoryReport& operator=(const MemoryReport&) = delete;

   private:
    const RecordingDevice& device_;
    const RecordingDevice& whole_;
    SimulatedRank& result_;
  };

  // The same of the file that the optimizer has, if it has one.
  class FileReport {
   public:
    FileReport(const RecordingTier* file, SimulatedRank& result) : file_(file), result_(result) {}
    ~FileReport() {
      if (file_ == nullptr) return;
      const RecordingTier::Report report = file_->report();
      result_.file = report.high_water;
      result_.file_live = report.live;
    }
    FileReport(const FileReport&) = delete;
    FileReport& operator=(const FileReport&) = delete;

   private:
    const RecordingTier* file_;
    SimulatedRank& result_;
  };

  // `file` is where the optimizer's file will be.
  ZeroOptions optimizer_options(VirtualRank& rank, Device& device, const LinkKernels& link_kernels,
                                RecordingTier*& file) const {
    ZeroOptions options;
    options.kernels = &booking_kernels();
    if (plan_.pinned.bytes > Bytes{}) options.kernels = &link_kernels;
    options.initial_values = [](const TensorRange&, std::span<float>) {};
    options.offload.make_tier = [&file](const FileTierOptions& made) {
      auto tier = std::make_unique<RecordingTier>(std::make_unique<BookedFile>(made.bytes));
      file = tier.get();
      return tier;
    };
    options.offload.make_transfers = [this, &rank, &device](const TransferOptions&) {
      return std::make_unique<BookedTransfers>(rank, device, options_.cluster.disk);
    };
    return options;
  }

  void train_step(VirtualRank& rank, ZeroOptimizer& optimizer, BookedClient* booked) const {
    for (std::uint64_t i = 1; i <= plan_.setup.accumulation; ++i) {
      const bool last = i == plan_.setup.accumulation;
      optimizer.begin(last ? ProgramKind::last_micro_batch : ProgramKind::train_micro_batch);
      const std::uint64_t units = plan_.layout.units;
      for (std::uint64_t unit = 0; unit < units; ++unit) compute(rank, optimizer, booked, unit, Pass::forward);
      for (std::uint64_t unit = units; unit-- > 0;) {
        if (plan_.setup.recompute == Recompute::full) compute(rank, optimizer, booked, unit, Pass::recompute);
        compute(rank, optimizer, booked, unit, Pass::backward);
      }
    }
    optimizer.step();
  }

  void compute(VirtualRank& rank, ZeroOptimizer& optimizer, BookedClient* booked, std::uint64_t unit, Pass pass) const {
    if (options_.unit_called) unit = options_.unit_called(rank.rank(), unit);
    const PassSeconds& seconds = seconds_of_unit(seconds_, unit);
    optimizer.enter(unit, pass);
    if (booked != nullptr) booked->begin(pass, unit);
    rank.work(optimizer.compute_stream(), name(pass), pass == Pass::backward ? seconds.backward : seconds.forward);
    if (booked != nullptr) booked->end(pass, unit);
    optimizer.leave(unit);
  }

  const Model& model_;
  const StepPlan& plan_;
  const SimulationOptions& options_;
  const std::vector<UnitRunSeconds>& seconds_;
  const Costs& costs_;
};

std::string message_of(const std::exception_ptr& error) {
  if (!error) return {};
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& exception) {
    return exception.what();
  } catch (...) {
    return "an unknown error";
  }
}

}  // namespace

double ClusterCosts::memory_seconds(Bytes touched) const {
  return static_cast<double>(touched.count()) / memory_rate(cluster_) + cluster_.efficiency.kernel_seconds;
}

std::uint64_t gpus_per_adapter(const Cluster& cluster, std::uint64_t gpus_per_node) {
  return std::gcd(cluster.gpus_per_adapter, gpus_per_node);
}

double ClusterCosts::host_link_seconds(Bytes in, Bytes out) const {
  return static_cast<double>(std::max(in, out).count()) / cluster_.host.rate();
}

// Ranks that fill their nodes unevenly go round one ring, each node left by one link.
CollectivePrice ClusterCosts::collective(VirtualCollective kind, Bytes bytes, const GroupShape& group) const {
  const auto collective =
      kind == VirtualCollective::reduce_scatter ? CollectiveKind::reduce_scatter : CollectiveKind::all_gather;
  const Group ranks{.ranks_per_node = group.ranks_per_node, .nodes = group.nodes};
  const bool even = ranks.ranks() == group.ranks;
  // A group that does not have all GPUs of an adapter has more of it than their shares.
  const Contention alone{.network =
                             static_cast<double>(group.ranks_per_adapter) / static_cast<double>(gpus_per_adapter_)};
  const CollectiveCost cost = cost_of(collective, Bytes{bytes.count() / ranks.ranks()}, ranks, cluster_,
                                      even ? Algorithm::fastest : Algorithm::ring, alone);
  CollectivePrice price{.seconds = cost.seconds, .start_seconds = cost.seconds - cost.byte_seconds};
  if (cost.sent.sum() == Bytes{}) return price;
  const auto node = static_cast<double>(cost.sent.node.count());
  const auto network = static_cast<double>(cost.sent.network.count());
  price.network_share =
      even ? network / (node + network) : static_cast<double>(group.nodes) / static_cast<double>(group.ranks);
  const double each = cost.byte_seconds * static_cast<double>(ranks.ranks());
  price.node_use = node / (each * cluster_.node.rate());
  price.network_use = network * alone.network / (each * cluster_.network.rate());
  return price;
}

Simulation simulate(const Model& model, const StepPlan& plan, const SimulationOptions& options) {
  const auto start = Clock::now();
  const std::vector<UnitRunSeconds> seconds = unit_seconds(model, options.work, options.cluster);
  const ClusterCosts costs(options.cluster, options.gpus_per_node);
  const Client client(model, plan, options, seconds, costs);
  Simulation simulation;
  simulation.ranks.resize(plan.setup.world_size);
  VirtualWorld world({.ranks = static_cast<int>(plan.setup.world_size),
                      .ranks_per_node = static_cast<int>(options.gpus_per_node),
                      .ranks_per_adapter = static_cast<int>(gpus_per_adapter(options.cluster, options.gpus_per_node)),
                      .costs = &costs,
                      .deadline = options.deadline,
                      .faults = options.faults,
                      .trace = options.trace,
                      .threads = options.threads});
  const std::vector<VirtualOutcome> outcomes =
      world.run([&](VirtualRank& rank) { client.run(rank, simulation.ranks[static_cast<std::size_t>(rank.rank())]); });
  simulation.happened.resize(options.faults.size());
  Bytes sent;
  double over_network = 0;
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank) {
    SimulatedRank& result = simulation.ranks[rank];
    result.outcome = outcomes[rank];
    result.error = result.outcome.killed ? "killed" : message_of(result.outcome.error);
    for (const std::size_t fault : result.outcome.faults) simulation.happened[fault] = true;
    sent += result.outcome.sent;
    over_network += result.outcome.sent_over_network;
    simulation.operations += result.outcome.operations;
    simulation.step_seconds = std::max(simulation.step_seconds, result.step_seconds);
  }
  const Bytes network{static_cast<std::uint64_t>(std::llround(over_network))};
  simulation.sent = {.node = sent - network, .network = network};
  simulation.wall_seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return simulation;
}

}  // namespace shardplan
