#include "tools/train/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "base/error.h"
#include "tools/mpi/launcher.h"

namespace shardplan::train {
namespace {

LossScaling scaling_of(const std::string& text) {
  if (text == "torch") return default_scaling(LossScaleRule::torch);
  if (text == "deepspeed") return default_scaling(LossScaleRule::deepspeed);
  if (text == "megatron") return default_scaling(LossScaleRule::megatron);
  char* end = nullptr;
  const double scale = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(scale > 0)) {
    throw ConfigError("--loss-scale", "",
                      fmt::format("'{}' is no loss scale: expected a positive number, torch, deepspeed "
                                  "or megatron",
                                  text));
  }
  return {.rule = LossScaleRule::constant, .initial = scale};
}

Cadence cadence_of(const std::string& text) {
  if (text == "step") return Cadence::step;
  if (text == "micro_batch") return Cadence::micro_batch;
  throw ConfigError("--cadence", "", fmt::format("'{}' is not known: expected micro_batch or step", text));
}

struct Words {
  std::string precision = "fp32";
  std::string optimizer = "adamw";
  std::optional<std::string> cadence;
  std::optional<std::string> loss_scale;
  std::string communicator = "local";
  std::string device = "cpu";
  std::optional<std::string> offload;
  std::string offload_io = "pread";
  std::optional<std::uint64_t> ranks;
  double deadline = 60;
  bool untied = false;
};

std::string communicators_for_help() {
  std::string text;
  for (const RankKind& kind : rank_kinds()) {
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", kind.name, kind.what);
  }
  return text + " (local)";
}

// Arenas on a GPU are the library's business, and it has them (shard/cuda_backend.h); the model is this program's.
void require_cpu(const std::string& device) {
  if (device == "cpu") return;
  if (device != "cuda") throw ConfigError("--device", "", fmt::format("'{}' is not known: expected cpu", device));
  throw ConfigError(
      "--device", "",
      "cuda: this program's model has no GPU kernels: it computes on the CPU, which cannot read the views "
      "that the optimizer would give it there. Link a client of your own (docs/linking.md)");
}

void finish(TrainingOptions& options, const RankKind& kind, const Words& words) {
  options.ranks = kind.world_size(words.ranks);
  require_cpu(words.device);
  if (options.ranks == 0) throw ConfigError("--ranks", "", "expected 1 or more");
  if (!(words.deadline > 0)) throw ConfigError("--deadline", "", "expected a number of seconds above 0");
  options.deadline = std::chrono::milliseconds{static_cast<std::int64_t>(std::min(words.deadline, 1e9) * 1000)};
  Setup& setup = options.setup;
  setup.world_size = options.ranks;
  setup.policy = policy_named(words.precision);
  setup.optimizer = optimizer_named(words.optimizer).kind;
  if (words.cadence) setup.cadence = cadence_of(*words.cadence);
  if (words.offload) {
    const OffloadWords offload = parse_offload(*words.offload);
    setup.offload = offload.offload;
    if (const std::string folder = file_folder(offload); !folder.empty()) options.offload.folder = folder;
  }
  if (options.offload.threads < 0 || options.offload.threads > 64) {
    throw ConfigError("--offload-threads", "", "expected 0 to 64");
  }
  if (words.offload_io == "io_uring") {
    options.offload.io = FileIo::io_uring;
  } else if (words.offload_io != "pread") {
    throw ConfigError("--offload-io", "",
                      fmt::format("'{}' is not known: expected pread or io_uring", words.offload_io));
  }
  options.model.tied = !words.untied;
  if (setup.policy.compute != setup.policy.parameter) {
    throw ConfigError("--precision", "",
                      fmt::format("'{}' can be planned, not trained: expected fp32, fp16-mixed, bf16-mixed, "
                                  "bf16-mixed-fp32grad, bf16 or bf16-fp32state",
                                  words.precision));
  }
  if (words.loss_scale) {
    options.loss_scaling = scaling_of(*words.loss_scale);
  } else if (setup.policy.gradient == DType::f16) {
    options.loss_scaling = default_scaling(LossScaleRule::torch);
  }
  if (options.steps == 0 || options.micro_batch == 0)
    throw ConfigError("--steps, --micro-batch", "", "expected 1 or more");
  if (options.checkpoints.every != 0 && options.checkpoints.save.empty()) {
    throw ConfigError("--save-every", "", "without --save: expected a folder to save into");
  }
  if (options.checkpoints.background && options.checkpoints.save.empty()) {
    throw ConfigError("--save-background", "", "without --save: expected a folder to save into");
  }
  validate(setup);
}

}  // namespace

ParseResult parse_command_line(int argc, char** argv) {
  ParseResult result;
  TrainingOptions& options = result.options;
  Words words;
  CLI::App app{"shardplan-train trains a small byte-level GPT on a text file with N ranks at any ZeRO stage.",
               "shardplan-train"};
  app.get_formatter()->column_width(32);
  app.add_option("--text", options.text, "the file to train on; its last tenth is held out")->required();
  app.add_option("--ranks", words.ranks, "how many ranks (1; of a launcher, its own)");
  app.add_option("--zero", options.setup.stage, "ZeRO stage (0)");
  app.add_option("--replicate", options.setup.replicate, "groups that replicate each other: hybrid sharding (1)");
  app.add_option("--precision", words.precision,
                 "fp32, bf16-mixed, fp16-mixed, bf16-mixed-fp32grad, bf16, bf16-fp32state (fp32)");
  app.add_option("--optimizer", words.optimizer, "adamw, adam, sgd, sgd-momentum, lion (adamw)");
  app.add_option("--layers", options.model.layers, "blocks (2)");
  app.add_option("--width", options.model.width, "features (128)");
  app.add_option("--heads", options.model.heads, "attention heads (4)");
  app.add_option("--context", options.model.context, "bytes seen at once (64)");
  app.add_flag("--untied", words.untied, "give the head a matrix of its own");
  app.add_option("--micro-batch", options.micro_batch, "sequences per rank and micro-batch (8)");
  app.add_option("--grad-accum", options.setup.accumulation, "micro-batches per step (1)");
  app.add_option("--steps", options.steps, "the number of the last step (400)");
  app.add_option("--lr", options.hyperparameters.learning_rate, "learning rate (1e-3)");
  app.add_option("--weight-decay", options.hyperparameters.weight_decay, "weight decay (0.01)");
  app.add_option("--seed", options.model.seed, "of initial values and data order (0)");
  app.add_option("--clip", options.clip_norm, "clip gradients to this norm; 0: off (1)");
  app.add_option("--loss-scale", words.loss_scale,
                 "a number, or the rule torch, deepspeed, megatron (torch for fp16-mixed, else 1)");
  app.add_option("--cadence", words.cadence, "micro_batch or step (step at stages 0 and 1)");
  app.add_option("--reduction-group", options.setup.reduction_group, "ranks that are summed first (the shard group)");
  app.add_option("--prefetch", options.setup.prefetch, "units gathered ahead at stage 3 (1)");
  app.add_flag("--ema", options.setup.ema, "keep a moving average of the parameters");
  app.add_option(
         "--offload", words.offload,
         "optimizer, gradients or parameters = cpu or file[:FOLDER], one file for each rank; @FRACTION after the tier "
         "for a part: optimizer=cpu@0.5")
      ->type_name("CLASS=TIER,...");
  app.add_option("--offload-threads", options.offload.threads, "that read and write a rank's file (4)");
  app.add_option("--offload-io", words.offload_io, "how they do: pread, or io_uring with pieces at once (pread)")
      ->type_name("HOW");
  app.add_option("--comm", words.communicator, communicators_for_help());
  app.add_option("--device", words.device, "where the arenas lie: cpu, which is where the model computes (cpu)");
  app.add_option("--deadline", words.deadline, "seconds that a rank waits for another one, at most (60)");
  app.add_option("--save", options.checkpoints.save,
                 "save into this folder after the last step, and on SIGTERM, which then ends the run");
  app.add_option("--save-every", options.checkpoints.every, "save after every so many steps, too");
  app.add_flag("--save-background", options.checkpoints.background,
               "write while training goes on, from a planned copy of the state in host memory");
  app.add_option("--keep", options.checkpoints.keep, "checkpoints that stay in the folder; 0: all (2)");
  app.add_option("--resume", options.checkpoints.resume,
                 "go on from the newest whole checkpoint in this folder, or this one; from step 0 where there is none");
  app.add_flag("--json", options.json, "one JSON object on stdout at the end");
  // Of the processes of a launcher, which have the same command line, one answers, and ends with the status. The others
  // end with 0: a launcher kills all as soon as one fails, the one that is about to answer too.
  const bool first = is_first_process([](const char* variable) { return std::getenv(variable); });
  const auto complain = [first](const std::exception& error) {
    if (first) fmt::print(stderr, "shardplan-train: {}\n", error.what());
    return first ? 2 : 0;
  };
  try {
    app.parse(argc, argv);
    result.kind = &rank_kind_named(words.communicator);
    finish(options, *result.kind, words);
  } catch (const CLI::Success& success) {
    if (first) app.exit(success);
    result.exit_status = 0;
  } catch (const CLI::ParseError& error) {
    result.exit_status = complain(error);
  } catch (const ConfigError& error) {
    result.exit_status = complain(error);
  }
  return result;
}

}  // namespace shardplan::train
