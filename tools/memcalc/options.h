// What the user asked memcalc for: the command line, read and checked, before any file is opened.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "planner/activations/client.h"
#include "planner/engines/options.h"
#include "planner/formats/megatron_args.h"
#include "planner/lora.h"
#include "planner/report.h"
#include "planner/setup.h"

namespace shardplan::memcalc {

// --precision and its overrides ("--grad-dtype" -> "fp32"), combined once all flags and files are read.
struct PolicyFlags {
  std::string precision = "bf16-mixed";
  std::map<std::string, std::string> overrides;
};

// Which key of which file said what a flag could have said.
struct Origin {
  std::string file;
  std::string key;
};

// Formats of --export.
enum class ExportFormat : std::uint8_t { deepspeed, accelerate, fsdp, megatron };

// MODEL and what is asked about it: the flags of plan and explain.
struct PlanOptions {
  std::string model;                      // a preset, a file or a folder; empty with --params
  std::vector<std::string> others;        // further MODELs on the same GPUs, as given (together.h)
  std::optional<std::string> parameters;  // --params
  std::optional<MegatronRun> megatron;    // of --megatron-args: the model, instead of both
  std::vector<std::string> freeze;        // globs
  std::optional<Lora> lora;               // --lora-rank and what goes with it
  std::optional<Quantization> quantize;
  std::optional<std::uint64_t> vocabulary_multiple;  // of setup.parallel; empty: 1, engine megatron 128
  Engine engine = Engine::shardplan;
  EngineOptions engine_options;        // of engines other than ours
  std::optional<std::string> offload;  // as given: CLASS=TIER,...
  Setup setup;
  bool save_background = false;                // checkpoints are written while training goes on (planner/snapshot.h)
  std::optional<std::uint64_t> gpus_per_node;  // 8; to simulate, the cluster's
  std::optional<std::string> gpu;              // a name or a size
  std::vector<std::string> gpu_files;          // tables of the user's own
  // Whose code computes the model, and how. Activations are counted where `sequence` is given.
  std::optional<Profile> profile;  // empty: hf-sdpa; engine megatron: megatron
  ClientSetup client;              // but for the three beside it
  std::optional<std::uint64_t> sequence;
  std::uint64_t micro_batch = 1;
  bool json = false;
  bool verbose = false;
  std::optional<std::string> against;         // plan: flags that make another set-up of this one, to compare with
  std::optional<std::string> calibrate;       // plan: a file of measured numbers
  std::optional<ExportFormat> export_format;  // print a configuration file instead of the plan

  std::vector<std::string> words;  // of the command line, where --against is to be added to them

  // Of a configuration file (config_files.h): which flags it stands for, and what is to be said about it.
  std::map<std::string, Origin> origins;
  std::vector<std::string> notes;

  // The client with its profile, sequence and micro-batch.
  ClientSetup whole_client() const;
  std::uint64_t node_gpus() const { return gpus_per_node.value_or(8); }
};

// Sets what profile torchtitan does whatever it is told: tensor parallelism cuts the text between layers too. Its engine, fsdp2, reduces
// gradients in fp32 (training.mixed_precision_reduce), and layers that do not divide go to the stages behind the first.
void set_torchtitan(PlanOptions& options);

// What simulate is told besides the flags of plan.
struct SimulateOptions {
  std::optional<std::string> cluster;  // a name or a file
  std::uint64_t seed = 0;
  std::vector<std::string> faults;  // tools/simulate/fault_spec.h
  bool compare_stages = false;
  std::optional<std::string> trace;  // files to write
  std::optional<std::string> plot;
};

enum class FitQuestion {
  best,         // the fastest set-up that fits, over stage x tp x pp x ep x micro-batch x recompute
  micro_batch,  // the largest that fits the set-up as it is given
  sequence,     // the longest
  model,        // the most blocks of this kind
  gpus,         // the fewest
  cheapest,     // the change to the set-up that makes it fit and costs least time
};

// What fit is told besides the flags of plan.
struct FitOptions {
  FitQuestion question = FitQuestion::best;
  std::optional<std::string> cluster;
  // Sequences per step, which every set-up that is compared has. Empty: those of the set-up as it is given.
  std::optional<std::uint64_t> global_batch;
  // Flags that were given: what they say is not varied.
  std::set<std::string> given;
  std::uint64_t most_plans = 10;     // that are listed
  std::uint64_t most_rejected = 20;  // likewise
};

struct ValidateOptions {
  std::vector<std::string> paths;
  bool json = false;
};

struct ListOptions {
  bool json = false;
  bool names = false;   // one a line, and nothing else
  bool detect = false;  // gpus: those of this machine
  std::vector<std::string> gpu_files;
};

enum class Command { plan, explain, fit, simulate, validate, models, gpus };

struct CommandLine {
  Command command = Command::plan;
  PlanOptions plan;  // plan, explain, fit and simulate
  FitOptions fit;
  ValidateOptions validate;
  SimulateOptions simulate;
  ListOptions list;  // models and gpus
};

// The set-up that --against of these words asks for: theirs, with its flags behind them, which win. Throws ConfigError.
PlanOptions read_against(const PlanOptions& options);

// Reads the command line. Returns the exit status instead where there is nothing left to do: 0 after --help, --version
// or completion, 2 after a message on stderr about a command line that is wrong.
struct ParseResult {
  CommandLine command_line;
  std::optional<int> exit_status;
};
ParseResult parse_command_line(int argc, char** argv);

// The same for a program: what the words after "memcalc" say. Throws ConfigError, with the flag as its source where one
// flag is to blame.
CommandLine read_command_line(std::vector<std::string> words);

}  // namespace shardplan::memcalc
