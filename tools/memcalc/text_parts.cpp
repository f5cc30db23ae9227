#include "tools/memcalc/text_parts.h"

#include <fmt/format.h>

#include <utility>

#include "base/text.h"

namespace shardplan::memcalc {

Style style_for(bool colour) {
  return colour ? Style{"\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m"} : Style{};
}

std::string plural(std::uint64_t count, const char* word) {
  return fmt::format("{} {}{}", with_commas(count), word, count == 1 ? "" : "s");
}

namespace {

// The axes beside the data axis, where there are any.
std::string axes_words(const Setup& setup) {
  const Parallelism& p = setup.parallel;
  if (total_ranks(setup) == data_parallel(setup) && !experts_apart(p)) return {};
  std::string text = fmt::format(" on {}", plural(data_parallel(setup), "data rank"));
  for (const auto& [axis, ranks] : {std::pair{"tensor", p.tensor}, {"pipeline", p.pipeline}, {"context", p.context}}) {
    if (ranks > 1) text += fmt::format(" x {} {}", ranks, axis);
  }
  if (p.pipeline > 1) text += fmt::format(" ({})", name(resolved_schedule(p)));
  if (p.expert > 1) text += fmt::format(", experts over {}", p.expert);
  return text;
}

}  // namespace

std::string samples_text(const Planned& planned, const ClientSetup& client) {
  const std::string tokens = with_commas(client.sequence);
  if (planned.samples == Samples::texts && client.sequence == 0) return plural(client.micro_batch, "sequence");
  if (planned.samples == Samples::texts) return fmt::format("{} x {} tokens", client.micro_batch, tokens);
  if (planned.samples == Samples::points) return plural(client.micro_batch, "point");
  std::string images = plural(client.micro_batch, "image");
  if (planned.samples == Samples::images || client.sequence == 0) return images;
  return fmt::format("{} with {} tokens of text each", images, tokens);
}

std::string heading(const PlanOptions& options, const Planned& planned, const Style& style) {
  const Catalog& catalog = planned.catalog;
  const Setup& setup = options.setup;
  const std::uint64_t parameters = parameter_elements(catalog);
  const std::uint64_t trainable = trainable_elements(catalog);
  std::string text = fmt::format("{}{}{}  {} parameters", style.bold, catalog.name, style.off, with_commas(parameters));
  if (trainable != parameters) text += fmt::format(", {} trainable", with_commas(trainable));
  if (catalog.active_parameters) text += fmt::format(", {} used by a token", with_commas(*catalog.active_parameters));
  if (!catalog.count_only) {
    text += fmt::format(", {} in {}", plural(tensor_count(catalog), "tensor"), plural(unit_count(catalog), "unit"));
  }
  text += fmt::format("\n{}, ZeRO stage {}", plural(total_ranks(setup), "GPU"), setup.stage);
  text += axes_words(setup);
  if (setup.replicate > 1) {
    text += fmt::format(" in {} replicas of {} shards", setup.replicate, shard_count(setup));
  }
  text += fmt::format(", {}, {}, engine {}", setup.policy.name, states_of(setup.optimizer).name, name(options.engine));
  if (setup.accumulation > 1) {
    text += fmt::format(", {} micro-batches (cadence {})", setup.accumulation,
                        name(cadence_of(planned.report.traffic, setup)));
  }
  return text + "\n";
}

}  // namespace shardplan::memcalc
