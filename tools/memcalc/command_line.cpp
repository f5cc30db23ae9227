#include <algorithm>
#include <iostream>
#include <set>

#include "tools/memcalc/completion.h"
#include "tools/memcalc/fitting.h"
#include "tools/memcalc/flags.h"
#include "tools/memcalc/options.h"
#include "tools/memcalc/plan_flags.h"
#include "tools/version.h"

namespace shardplan::memcalc {
namespace {

constexpr const char* kFooter = R"(Examples:
  memcalc plan llama-2-7b --gpus 8 --zero 3
  memcalc plan path/to/config.json --gpus 64 --zero 2 --gpu h100-80gb --json
  memcalc plan --params 7e9 --engine paper --precision fp16-mixed
  memcalc explain gpt2-xl --gpus 4 --zero 1
  memcalc simulate llama-2-7b --gpus 64 --zero 3 --plot memory.svg

Exit status: 0 done, 1 it does not fit (--gpu), 2 the command line is wrong, 3 an input file or a model is bad.)";

constexpr const char* kFitFooter = R"(Examples:
  memcalc fit llama-2-7b --gpus 8 --gpu h100-80gb --seq 4096 --global-batch 64
  memcalc fit llama-2-7b --gpus 8 --gpu 24GiB --seq 2048 --zero 3 --ask cheapest
  memcalc fit llama-3.1-8b --gpus 8 --zero 3 --gpu a100-80gb --seq 8192 --ask micro-batch
  memcalc fit llama-3.1-70b --gpus 512 --gpu h100-80gb --seq 8192 --global-batch 1024 --profile megatron
  memcalc fit llama-2-7b llama-2-7b:frozen --gpus 8 --gpu h100-80gb --seq 4096 --global-batch 64

Varied: --zero, --tp, --pp, --cp, --ep, --virtual-stages, --sequence-parallel, --replicate, --micro-batch, --recompute
and --offload (engine shardplan: optimizer states, gradients too, parameters too, in host memory). One whose flag is given
is not. Of several MODELs the first one's layers and experts say how far --pp and --ep go.

Exit status: 0 something fits, 1 nothing does, 2 the command line is wrong, 3 an input file or a model is bad.)";

constexpr const char* kSimulateFooter = R"(Examples:
  memcalc simulate llama-2-7b --gpus 64 --zero 3 --plot memory.svg
  memcalc simulate llama-2-7b --gpus 64 --cluster h100-ethernet --compare-stages --plot stages.svg
  memcalc simulate gpt2 --gpus 8 --zero 2 --fault slow-rank,rank=3,factor=2 --trace trace.json
  memcalc simulate gpt2 --gpus 4 --zero 3 --fault random --seed 7 --json

--gpu decides the cluster (the first one that has it) and the memory; a size decides the memory alone.

Exit status: 0 done, 1 it does not fit (--gpu, or the cluster's), 2 the command line is wrong, 3 an input file or a
model is bad.)";

void add_fit_flags(CLI::App* app, FitOptions& options) {
  constexpr const char* kGroup = "The question";
  std::map<std::string, FitQuestion> questions;
  for (const FitQuestion question : {FitQuestion::best, FitQuestion::micro_batch, FitQuestion::sequence,
                                     FitQuestion::model, FitQuestion::gpus, FitQuestion::cheapest}) {
    questions.emplace(name(question), question);
  }
  add_word<FitQuestion>(app, "--ask", options.question,
                        "best (set-up of these GPUs), micro-batch, seq or model (the largest), gpus (the fewest), or "
                        "cheapest (change that makes it fit) (best)",
                        word_of<FitQuestion>("--ask", std::move(questions)));
  app->add_option("--cluster", options.cluster,
                  "a cluster's name or a .json file: links, and the GPU if --gpu is not given")
      ->type_name("NAME|FILE");
  add_count(app, "--global-batch", options.global_batch,
            "sequences per step, for best (micro-batch x grad-accum x data ranks as given)");
  add_count(app, "--plans", options.most_plans, "how many set-ups are listed (10)");
  add_count(app, "--rejected", options.most_rejected, "how many reasons are listed why others do not fit (20)");
  for (const char* flag : {"--ask", "--cluster", "--global-batch", "--plans", "--rejected"}) {
    app->get_option(flag)->group(kGroup);
  }
}

void add_export(CLI::App* app, PlanOptions& options) {
  add_word<std::optional<ExportFormat>>(
      app, "--export", options.export_format,
      "print the set-up as a configuration file instead of the plan: deepspeed (ds_config.json), accelerate (YAML of "
      "the engine), fsdp (accelerate's, of fsdp2) or megatron (arguments)",
      word_of<std::optional<ExportFormat>>("--export", {{"accelerate", ExportFormat::accelerate},
                                                        {"deepspeed", ExportFormat::deepspeed},
                                                        {"fsdp", ExportFormat::fsdp},
                                                        {"megatron", ExportFormat::megatron}}));
}

void add_beside(CLI::App* app, PlanOptions& options) {
  app->add_option("--against", options.against,
                  "compare with the same command with these flags (and MODEL, if it comes first), line by line")
      ->type_name("\"FLAGS\"");
  app->add_option("--calibrate", options.calibrate,
                  "what was measured, and which part differs: a memory snapshot of PyTorch's, or JSON or YAML with "
                  "peak_allocated and the like (docs/memcalc-json.md)")
      ->type_name("FILE");
}

void add_validate_flags(CLI::App* app, ValidateOptions& options) {
  app->add_option("PATH", options.paths, "files of measured runs, or folders of them (docs/validation.md)")
      ->type_name("");
  app->add_flag("--json", options.json, "one JSON object on stdout and nothing else");
}

void add_simulate_flags(CLI::App* app, SimulateOptions& options) {
  constexpr const char* kGroup = "Simulation";
  app->add_option("--cluster", options.cluster, "a cluster's name or a .json file (docs/cost_model.md) (h100)")
      ->type_name("NAME|FILE")
      ->group(kGroup);
  add_count(app, "--seed", options.seed, "of --fault random (0)");
  app->get_option("--seed")->group(kGroup);
  app->add_option("--fault", options.faults,
                  "what goes wrong: kill, stall, slow-rank, slow-link, drop, corrupt or out-of-memory, with ,rank=R "
                  ",operation=K ,seconds=S ,factor=F ,bytes=B; or random; may be repeated")
      ->type_name("SPEC")
      ->allow_extra_args(false)
      ->group(kGroup);
  app->add_flag("--compare-stages", options.compare_stages, "ZeRO stages 0 to 3 side by side")->group(kGroup);
  app->add_option("--trace", options.trace, "write a trace for ui.perfetto.dev")->type_name("FILE")->group(kGroup);
  app->add_option("--plot", options.plot, "write a chart (SVG): memory over the step, or the stages compared")
      ->type_name("FILE")
      ->group(kGroup);
}

std::vector<CompletedCommand> completed_commands(const CLI::App& app) {
  std::vector<CompletedCommand> commands;
  for (const CLI::App* command : app.get_subcommands({})) {
    CompletedCommand& completed = commands.emplace_back(CompletedCommand{command->get_name(), {}});
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& flag : option->get_lnames()) completed.flags.push_back("--" + flag);
    }
  }
  return commands;
}

std::set<std::string> given_flags(const CLI::App& command) {
  std::set<std::string> given;
  for (const CLI::Option* option : command.get_options()) {
    if (option->count() > 0) given.insert(option->get_name());
  }
  return given;
}

// The commands with their flags, and what they fill.
struct Parser {
  CommandLine line;
  PlanFlags flags;
  CLI::App app{"memcalc sizes a training run: what each GPU holds, where, and why.", "memcalc"};
  CLI::App* plan = app.add_subcommand("plan", "What one GPU of each kind holds: a table, or --json");
  CLI::App* explain = app.add_subcommand("explain", "The same numbers, each with its formula, inputs and source");
  CLI::App* fit = app.add_subcommand("fit", "The inverse questions: what fits, and which set-up is fastest");
  CLI::App* simulate = app.add_subcommand("simulate", "One step on virtual ranks: time, traffic and memory of each");
  CLI::App* validate = app.add_subcommand("validate", "Predicted against measured, row by row");
  CLI::App* models = app.add_subcommand("models", "The presets");
  CLI::App* gpus = app.add_subcommand("gpus", "The GPUs that are known by name");
  CLI::App* completion = app.add_subcommand("completion", "Bash completion: eval \"$(memcalc completion)\"");

  Parser();
  // Of a flag of plan that is given twice, the later one counts.
  void let_later_flags_win() const;
  // Throws CLI::ParseError (CLI::Success after --help or --version) and ConfigError.
  void read(std::vector<std::string> words);
};

Parser::Parser() {
  app.set_version_flag("--version", std::string("memcalc ") + kVersion);
  app.require_subcommand(1);
  app.footer(kFooter);
  app.get_formatter()->column_width(34);
  for (CLI::App* command : {plan, explain, fit, simulate}) {
    add_plan_flags(command, line.plan, flags);
    command->footer(command == simulate ? kSimulateFooter : command == fit ? kFitFooter : kFooter);
  }
  add_fit_flags(fit, line.fit);
  add_validate_flags(validate, line.validate);
  add_export(plan, line.plan);
  add_beside(plan, line.plan);
  add_simulate_flags(simulate, line.simulate);
  for (CLI::App* command : {models, gpus}) {
    command->add_flag("--json", line.list.json, "one JSON object on stdout and nothing else");
    command->add_flag("--names", line.list.names, "the names, one a line");
  }
  gpus->add_flag("--detect", line.list.detect,
                 "the GPUs of this machine instead, and which of the known ones they are");
  gpus->add_option("--gpu-file", line.list.gpu_files, "a table of more GPUs; may be repeated")
      ->type_name("FILE")
      ->allow_extra_args(false);
}

void Parser::let_later_flags_win() const {
  for (CLI::Option* option : plan->get_options()) {
    if (option->get_items_expected_max() <= 1) option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }
}

// Several MODELs: plan's and fit's, and without what is of one of them.
void refuse_others(const PlanOptions& options, bool known) {
  if (options.others.empty()) return;
  const char* beside = !known                  ? "memcalc plan and fit"
                       : options.against       ? "memcalc plan without --against"
                       : options.calibrate     ? "memcalc plan without --calibrate"
                       : options.export_format ? "memcalc plan without --export"
                                               : nullptr;
  if (beside == nullptr) return;
  throw ConfigError(
      "MODEL", "", fmt::format("expected one, found {}: several are planned by {}", options.others.size() + 1, beside));
}

void Parser::read(std::vector<std::string> words) {
  constexpr const char* kCommands = "plan, explain, fit, simulate, validate, models, gpus or completion";
  if (words.empty()) {
    throw ConfigError("", "", fmt::format("expected a command: {} (memcalc --help)", kCommands));
  }
  const std::vector<CLI::App*> commands = app.get_subcommands({});
  if (!words[0].starts_with('-') &&
      std::none_of(commands.begin(), commands.end(), [&](const CLI::App* c) { return c->check_name(words[0]); })) {
    throw ConfigError("", "", fmt::format("'{}' is no command: expected {}", words[0], kCommands));
  }
  line.plan.words = words;
  std::reverse(words.begin(), words.end());  // as CLI11 takes them
  app.parse(std::move(words));
  line.command = *explain    ? Command::explain
                 : *fit      ? Command::fit
                 : *simulate ? Command::simulate
                 : *validate ? Command::validate
                 : *models   ? Command::models
                 : *gpus     ? Command::gpus
                             : Command::plan;
  if (*fit) line.fit.given = given_flags(*fit);
  for (const CLI::App* command : {plan, explain, fit, simulate}) {
    if (!*command) continue;
    std::set<std::string> given = given_flags(*command);
    if (command == simulate) given.insert("--engine");  // our own optimizer, whatever a file says
    finish(line.plan, flags, given);
    refuse_others(line.plan, command == plan || command == fit);
  }
  if (*validate && line.validate.paths.empty())
    throw ConfigError("PATH", "", "expected a file of measured runs or a folder");
  // What a file says is not varied, either.
  for (const auto& [flag, origin] : line.plan.origins) line.fit.given.insert(flag);
}

// CLI11 writes "--flag: problem".
ConfigError config_error(const CLI::ParseError& error) {
  const std::string text = error.what();
  const std::size_t colon = text.starts_with("--") ? text.find(": ") : std::string::npos;
  if (colon == std::string::npos) return {"", "", text};
  return {text.substr(0, colon), "", text.substr(colon + 2)};
}

}  // namespace

PlanOptions read_against(const PlanOptions& options) {
  std::vector<std::string> words;
  for (std::size_t i = 0; i < options.words.size(); ++i) {
    const std::string& word = options.words[i];
    const bool beside = word == "--against" || word == "--calibrate" || word == "--export";
    if (beside) ++i;  // and its value
    if (beside || word.starts_with("--against=") || word.starts_with("--calibrate=") || word.starts_with("--export="))
      continue;
    words.push_back(word);
  }
  std::vector<std::string> flags = CLI::detail::split_up(*options.against);
  if (!flags.empty() && !flags.front().starts_with('-')) {
    const auto model = std::find(words.begin() + 1, words.end(), options.model);
    if (model == words.end()) throw ConfigError("--against", "", fmt::format("'{}' is no flag", flags.front()));
    *model = flags.front();
    flags.erase(flags.begin());
  }
  words.insert(words.end(), flags.begin(), flags.end());
  Parser parser;
  parser.let_later_flags_win();
  try {
    parser.read(std::move(words));
  } catch (const CLI::ParseError& error) {
    throw ConfigError("--against", "", error.what());
  } catch (const ConfigError& error) {
    throw ConfigError("--against", error.source(), error.problem());
  }
  return std::move(parser.line.plan);
}

CommandLine read_command_line(std::vector<std::string> words) {
  Parser parser;
  try {
    parser.read(std::move(words));
  } catch (const CLI::ParseError& error) {
    throw config_error(error);
  } catch (const ConfigError& error) {
    throw told_of_file(error, parser.line.plan);
  }
  return std::move(parser.line);
}

ParseResult parse_command_line(int argc, char** argv) {
  ParseResult result;
  Parser parser;
  try {
    parser.read({argv + 1, argv + argc});
    if (*parser.completion) {
      fmt::print("{}", completion_script(completed_commands(parser.app)));
      result.exit_status = 0;
    }
    result.command_line = std::move(parser.line);
  } catch (const CLI::Success& success) {
    parser.app.exit(success);
    result.exit_status = 0;
  } catch (const CLI::ParseError& error) {
    std::cerr << "memcalc: " << error.what() << "\n";
    result.exit_status = 2;
  } catch (const ConfigError& error) {
    const ConfigError told = told_of_file(error, parser.line.plan);
    std::cerr << "memcalc: " << told.what() << "\n";
    result.exit_status =
        told.source().empty() || told.source() == "MODEL" || told.source() == "PATH" ? 2 : exit_status_of(told);
  } catch (const Error& error) {  // a configuration file that cannot be read
    std::cerr << "memcalc: " << error.what() << "\n";
    result.exit_status = 3;
  }
  return result;
}

}  // namespace shardplan::memcalc
