// What the optimizer is told besides the plan.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "offload/file_tier.h"
#include "offload/transfer_queue.h"
#include "runtime/communicator.h"
#include "shard/kernels/kernels.h"
#include "shard/loss_scaler.h"
#include "shard/step_report.h"

namespace shardplan {

struct Hyperparameters {
  double learning_rate = 1e-3;
  double beta1 = 0.9;  // momentum, for sgd_momentum
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
};

// A tensor belongs to the first group whose glob matches its whole name.
struct ParameterGroup {
  std::string match = "*";
  Hyperparameters values{};
};

enum class ClipNorm : std::uint8_t { global, per_group };

// Where a range of a tensor's initial values is asked for.
struct TensorRange {
  std::string_view name;     // the tensor's whole name
  std::uint64_t tensor = 0;  // its place in the catalog's order, tied ones counted
  std::uint64_t first = 0;   // element
};

// Where the plan has a file for each rank.
struct OffloadOptions {
  std::string folder = ".";  // of the files, shardplan-rank-N.tier: of one run at a time
  int threads = 4;           // that read and write; 0: the rank itself, one transfer after the other
  Bytes in_flight = 64_MiB;  // under way at once, at most; of parameters and gradients, all that is in pinned memory
  bool direct = true;        // past the page cache, where the file system allows it
  FileIo io = FileIo::pread;
  // What stands for the file, for those who watch it or make it fail. Empty: a FileTier.
  std::function<std::unique_ptr<ByteTier>(const FileTierOptions&)> make_tier{};
  // What carries out its transfers, for those who book them. Empty: a TransferQueue.
  std::function<std::unique_ptr<Transfers>(const TransferOptions&)> make_transfers{};
};

struct ZeroOptions {
  std::vector<ParameterGroup> groups{ParameterGroup{}};
  // The group of each tensor in the catalog's order, tied ones counted, for whose groups follow no names; empty: the globs say.
  std::vector<std::uint32_t> group_of_tensor{};
  // Gradients are scaled down to this norm (of all, or of each group); 0 switches clipping off.
  double clip_norm = 0;
  ClipNorm clip = ClipNorm::global;
  LossScaling loss_scaling;
  double ema_decay = 0.999;  // with Setup::ema
  OffloadOptions offload{};
  // Those of the device that the optimizer is on; they must outlive it.
  const Kernels* kernels = &host_kernels();
  // Initial values in fp32, asked for in ranges, so that no rank ever holds the whole model. They must be the same
  // function of (tensor, element) on every rank. Called in the constructor.
  std::function<void(const TensorRange&, std::span<float>)> initial_values;
  // Called at the end of each step, on the rank's own thread. Must not call the optimizer, nor throw.
  std::function<void(const StepReport&)> on_step;
};

// The groups of ranks. Without hybrid sharding there is one: `shard_group` is the world and `replicas` is null.
// All are of one family (split from one), and ranks of `world` are ranks of the plan.
struct Communicators {
  Communicator* world = nullptr;
  Communicator* shard_group = nullptr;
  Communicator* replicas = nullptr;
};

}  // namespace shardplan
