// shardplan-checkpoint: looks at checkpoints, and turns them into others. See --help.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>

#include "base/error.h"
#include "planner/formats/json_writer.h"
#include "runtime/files/posix_files.h"
#include "tools/checkpoint/commands.h"
#include "tools/checkpoint/inspect.h"
#include "tools/version.h"

namespace shardplan::checkpoint_tool {
namespace {

constexpr int kDone = 0;
constexpr int kWrongCommandLine = 2;
constexpr int kBad = 3;

constexpr const char* kFooter = R"(PATH is a checkpoint, or a folder of them: then what a resume would take.

Examples:
  shardplan-checkpoint inspect runs/first
  shardplan-checkpoint verify runs/first --threads 8
  shardplan-checkpoint consolidate runs/first exported --dtype bf16
  shardplan-checkpoint reshard runs/first runs/of-two --ranks 2
  shardplan-checkpoint import path/to/model runs/fine-tuned

Exit status: 0 done, 2 the command line is wrong, 3 a checkpoint or a file is bad.)";

struct Words {
  std::string path;
  std::string out;
  bool json = false;
  unsigned threads = std::max(1U, std::thread::hardware_concurrency());
  std::uint64_t ranks = 1;
  std::string dtype;
  std::string shard_size = "5GB";
  bool ema = false;
};

// Throws IoError where stdout cannot take it.
void print(const std::string& text) {
  const std::size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
  if (written != text.size() || std::fflush(stdout) != 0) throw IoError("stdout", written, errno, "cannot write");
}

int run_inspect(const Words& words) {
  PosixFiles files;
  const CheckpointReader reader(files, checkpoint_at(files, words.path));
  print(words.json ? inspect_json(reader) : inspect_text(reader));
  return kDone;
}

int run_verify(const Words& words) {
  PosixFiles files;
  const Verified verified = verify(files, words.path, words.threads);
  for (const Flaw& flaw : verified.flaws) {
    fmt::print(stderr, "shardplan-checkpoint: {}: {}{}{}\n", flaw.file, flaw.slice, flaw.slice.empty() ? "" : ": ",
               flaw.problem);
  }
  if (words.json) {
    print(JsonWriter()
              .add("schema", "shardplan.checkpoint-verify/1")
              .add("checkpoints", verified.checkpoints)
              .add("bytes", verified.bytes)
              .add("flaws", static_cast<std::uint64_t>(verified.flaws.size()))
              .finish());
  } else if (verified.flaws.empty()) {
    print(fmt::format("{} checkpoint{}, {}: every byte is as it was written\n", verified.checkpoints,
                      verified.checkpoints == 1 ? "" : "s", in_gb(Bytes{verified.bytes})));
  }
  return verified.flaws.empty() ? kDone : kBad;
}

int run_consolidate(const Words& words) {
  PosixFiles files;
  ConsolidateOptions options{.dtype = {}, .ema = words.ema, .shard_bytes = parse_bytes(words.shard_size).count()};
  if (!words.dtype.empty()) {
    options.dtype = parse_dtype(words.dtype);
    if (options.dtype != DType::f32 && options.dtype != DType::bf16 && options.dtype != DType::f16) {
      throw ConfigError("--dtype", "", fmt::format("'{}': expected fp32, bf16 or fp16", words.dtype));
    }
  }
  for (const std::string& name : consolidate(files, checkpoint_at(files, words.path), words.out, options)) {
    print(join_path(words.out, name) + "\n");
  }
  return kDone;
}

int run_reshard(const Words& words) {
  PosixFiles files;
  print(join_path(words.out, reshard(files, checkpoint_at(files, words.path), words.out, words.ranks)) + "\n");
  return kDone;
}

int run_import(const Words& words) {
  PosixFiles files;
  print(join_path(words.out, import_weights(files, words.path, words.out)) + "\n");
  return kDone;
}

int main_with_errors(int argc, char** argv) {
  Words words;
  int (*command)(const Words&) = nullptr;
  CLI::App app{"shardplan-checkpoint looks at checkpoints, and turns them into others.", "shardplan-checkpoint"};
  app.footer(kFooter);
  app.set_version_flag("--version", kVersion);
  app.require_subcommand(1);
  const auto add = [&](const char* name, const char* help, int (*act)(const Words&)) {
    CLI::App* const sub = app.add_subcommand(name, help);
    sub->callback([&command, act] { command = act; });
    sub->add_option("PATH", words.path, "a checkpoint, or a folder of them")->required();
    return sub;
  };
  CLI::App* sub = add("inspect", "say what a checkpoint holds", run_inspect);
  sub->add_flag("--json", words.json, "as JSON");
  sub = add("verify", "compare every byte with its checksum; of a folder, all checkpoints in it", run_verify);
  sub->add_option("--threads", words.threads, "that read and compare, within a file too (the machine's)")
      ->check(CLI::Range(1, 1024));
  sub->add_flag("--json", words.json, "as JSON");
  sub = add("consolidate", "write Hugging Face safetensors files: whole tensors, by their own names", run_consolidate);
  sub->add_option("OUT", words.out, "a new folder")->required();
  sub->add_option("--dtype", words.dtype, "fp32, bf16 or fp16 (as they are stored)");
  sub->add_option("--max-shard-size", words.shard_size, "of one file (5GB)");
  sub->add_flag("--ema", words.ema, "the moving averages in the place of the parameters");
  sub = add("reshard", "write the files that so many ranks would have saved", run_reshard);
  sub->add_option("OUT", words.out, "a folder of checkpoints: a new one is added")->required();
  sub->add_option("--ranks", words.ranks, "how many ranks (1)");
  sub = add("import", "make a checkpoint of weights, to start from", run_import);
  sub->get_option("PATH")->description("a .safetensors file, an *.safetensors.index.json, or a folder of them");
  sub->add_option("OUT", words.out, "a folder of checkpoints: a new one is added")->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "shardplan-checkpoint: {}\n", error.what());
    return kWrongCommandLine;
  }
  try {
    return command(words);
  } catch (const ConfigError& error) {
    fmt::print(stderr, "shardplan-checkpoint: {}\n", error.what());
    return error.source().starts_with("--") ? kWrongCommandLine : kBad;
  } catch (const std::exception& error) {
    fmt::print(stderr, "shardplan-checkpoint: {}\n", error.what());
    return kBad;
  }
}

}  // namespace
}  // namespace shardplan::checkpoint_tool

int main(int argc, char** argv) {
  return shardplan::checkpoint_tool::main_with_errors(argc, argv);
}
