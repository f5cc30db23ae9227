#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "tools/memcalc/evaluator.h"
#include "tools/memcalc/output.h"
#include "tools/memcalc/together.h"

namespace shardplan::memcalc {
namespace {

std::string seconds_text(double seconds) {
  return seconds < 1 ? fmt::format("{:.0f} ms", seconds * 1e3) : fmt::format("{:.3g} s", seconds);
}

std::string names_of(const Fit& fit) {
  if (fit.models.size() == 1) return fit.model().catalog.name;
  std::string names;
  for (const Model& model : fit.models) names += (names.empty() ? "" : " + ") + name_beside_others(model.catalog);
  return names;
}

std::string plans_table(const Fit& fit, std::size_t most, const char* dim, const char* off) {
  const bool cheapest = fit.question == FitQuestion::cheapest;
  std::string text = fmt::format("{}{:>12} {:>10} {:>14}   {}{}\n", dim, "needs", "step", "per second",
                                 cheapest ? "change" : "set-up", off);
  for (std::size_t i = 0; i < std::min(fit.plans.size(), most); ++i) {
    const FittedPlan& plan = fit.plans[i];
    text += fmt::format(
        "{:>12} {:>10} {:>14}   {}{}\n", in_gb(plan.needed), seconds_text(plan.time.seconds()),
        fmt::format("{:.3g} seq", plan.sequences_per_second), cheapest ? plan.change : axes_of(plan.options),
        plan.saved && *plan.saved > 0
            ? fmt::format("{}   saves {}{}", dim, in_gb(Bytes{static_cast<std::uint64_t>(*plan.saved)}), off)
            : "");
  }
  return text;
}

std::string rejected_text(const Fit& fit, const char* dim, const char* off) {
  std::string text = fmt::format("\n{} are rejected:\n", with_commas(fit.rejections));
  for (std::size_t i = 0; i < kRejections && fit.rejections > 1; ++i) {
    const std::uint64_t count = fit.rejections_by_reason[i];
    if (count > 0) text += fmt::format("{:>12}  {}\n", with_commas(count), name(static_cast<Rejection>(i)));
  }
  std::uint64_t listed = 0;
  for (const RejectedPlan& plan : fit.rejected) {
    listed += plan.count;
    const std::string others = plan.count > 1 ? fmt::format(" (and {} like it)", with_commas(plan.count - 1)) : "";
    text += fmt::format("  {}{}: {}{}{}\n", axes_of(plan.options), others, dim, plan.why, off);
  }
  if (fit.rejections > listed) text += fmt::format("{}  ... (--rejected){}\n", dim, off);
  return text;
}

}  // namespace

std::string fit_text(const Fit& fit, const FitOptions& options, bool colour) {
  const char* bold = colour ? "\033[1m" : "";
  const char* dim = colour ? "\033[2m" : "";
  const char* off = colour ? "\033[0m" : "";
  std::string text = fmt::format("{}{}{} on {} ({})\n", bold, names_of(fit), off, fit.gpu.name, in_gb(fit.gpu.bytes));
  if (fit.question == FitQuestion::best) text += fmt::format("{} sequences a step\n", with_commas(fit.sequences));
  text += fmt::format("{}: {}{}{}\n", name(fit.question), bold, fit.answer.value_or("nothing fits"), off);
  if (!fit.plans.empty()) text += "\n" + plans_table(fit, options.most_plans, dim, off);
  if (fit.slower > 0) {
    text += fmt::format("{}  {} others are slower, whether they fit or not (--plans lists more){}\n", dim,
                        with_commas(fit.slower), off);
  }
  if (fit.rejections > 0) text += rejected_text(fit, dim, off);
  text += fmt::format("\n{}{} set-ups decided, {} computed, {}; times are estimates (docs/cost_model.md){}\n", dim,
                      with_commas(fit.decided), with_commas(fit.evaluated), seconds_text(fit.seconds), off);
  for (const std::string& note : fit.notes) text += fmt::format("{}note: {}{}\n", dim, note, off);
  return text;
}

}  // namespace shardplan::memcalc
