// memcalc: sizes a training run. See `memcalc --help`.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <string>

#include "base/error.h"
#include "tools/memcalc/config_files.h"
#include "tools/memcalc/detected.h"
#include "tools/memcalc/export.h"
#include "tools/memcalc/options.h"
#include "tools/memcalc/output.h"
#include "tools/memcalc/planning.h"
#include "tools/memcalc/simulating.h"
#include "tools/memcalc/together.h"

namespace shardplan::memcalc {
namespace {

constexpr int kDone = 0;
constexpr int kDoesNotFit = 1;
constexpr int kBadInput = 3;

// Throws IoError where stdout cannot take it (a full disk, a closed pipe): an answer is never cut short in silence.
void print(const std::string& text) {
  const std::size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
  if (written != text.size() || std::fflush(stdout) != 0) throw IoError("stdout", written, errno, "cannot write");
}

// On a terminal, and only there: what takes longer than a moment says so.
void say_progress(const std::string& what) {
  if (isatty(STDERR_FILENO) != 0) fmt::print(stderr, "memcalc: {}\n", what);
}

int run(const CommandLine& line) {
  switch (line.command) {
    case Command::models:
      print(models_text(line.list));
      return kDone;
    case Command::gpus:
      print(line.list.detect ? detected_gpus_text(line.list) : gpus_text(line.list));
      return kDone;
    case Command::fit: {
      const Fit fit = make_fit(line.plan, line.fit);
      print(line.plan.json ? fit_json(fit, line.fit) : fit_text(fit, line.fit, isatty(STDOUT_FILENO) != 0));
      return fit.answer ? kDone : kDoesNotFit;
    }
    case Command::validate: {
      const Validation validation = make_validation(line.validate);
      print(line.validate.json ? validation_json(validation) : validation_text(validation));
      return kDone;
    }
    case Command::simulate: {
      const Simulated simulated = make_simulated(line.plan, line.simulate, say_progress);
      print(line.plan.json ? simulate_json(simulated) : simulate_text(simulated));
      const bool compared = simulated.stages.size() > 1;
      return compared || simulated.stages[0].planned.fits.value_or(true) ? kDone : kDoesNotFit;
    }
    case Command::explain: {
      const Explained explained = make_explained(line.plan);
      print(line.plan.json ? explain_json(line.plan, explained) : explain_text(line.plan, explained));
      return kDone;
    }
    case Command::plan:
      break;
  }
  if (!line.plan.others.empty()) {
    const PlannedTogether together = make_together(line.plan);
    print(line.plan.json ? together_json(together) : together_text(together, isatty(STDOUT_FILENO) != 0));
    return together.fits.value_or(true) ? kDone : kDoesNotFit;
  }
  const Planned planned = make_planned(line.plan);
  if (line.plan.export_format) {
    print(export_text(line.plan));
    for (const std::string& note : planned.report.notes) fmt::print(stderr, "memcalc: note: {}\n", note);
    for (const std::string& note : export_notes(line.plan)) fmt::print(stderr, "memcalc: note: {}\n", note);
    return planned.fits.value_or(true) ? kDone : kDoesNotFit;
  }
  const Beside beside = beside_of(line.plan, planned);
  print(line.plan.json ? plan_json(line.plan, planned, beside)
                       : plan_text(line.plan, planned, beside, isatty(STDOUT_FILENO) != 0));
  return planned.fits.value_or(true) ? kDone : kDoesNotFit;
}

}  // namespace

// Everything that is thrown becomes one line on stderr and an exit status.
int main_with_errors(int argc, char** argv) {
  const ParseResult parsed = parse_command_line(argc, argv);
  if (parsed.exit_status) return *parsed.exit_status;
  try {
    return run(parsed.command_line);
  } catch (const ConfigError& error) {
    const ConfigError told = told_of_file(error, parsed.command_line.plan);
    fmt::print(stderr, "memcalc: {}\n", told.what());
    return exit_status_of(told);
  } catch (const std::exception& error) {
    fmt::print(stderr, "memcalc: {}\n", error.what());
    return kBadInput;
  }
}

}  // namespace shardplan::memcalc

int main(int argc, char** argv) {
  return shardplan::memcalc::main_with_errors(argc, argv);
}
