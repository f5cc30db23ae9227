#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/text.h"
#include "planner/explain.h"
#include "tools/memcalc/output.h"
#include "tools/memcalc/text_parts.h"

namespace shardplan::memcalc {
namespace {

std::string lines_text(const char* title, const std::vector<Explanation>& lines) {
  std::string text = fmt::format("\n{}\n", title);
  for (const Explanation& line : lines) {
    text += fmt::format("\n  {:<40}{:>24} B   {} ({})\n      = {}\n        {}\n        source: {}\n", line.name,
                        with_commas(line.bytes.count()), in_gb(line.bytes), in_gib(line.bytes), line.formula,
                        line.inputs, line.source);
  }
  return text;
}

std::string tensor_words(std::string_view module, std::string_view operation, DType dtype, const Shape& shape) {
  return fmt::format("{:<27} {:<21} {} [{}]", module.empty() ? "-" : module, operation, name(dtype),
                     fmt::join(shape, ", "));
}

std::string saved_text(const ExplainedClient& client) {
  std::string text = "\nThe client's forward keeps for its backward, of one micro-batch\n";
  for (const ExplainedClient::Chunk& chunk : client.chunks) {
    if (client.chunks.size() > 1 || chunk.micro_batches > 1) {
      text += fmt::format("\n  (at the peak, of {} micro-batches)\n", chunk.micro_batches);
    }
    for (const SavedByUnit& unit : chunk.saved) {
      text += fmt::format("\n  {:<64}{:>24} B   {}{}\n", unit.unit, with_commas(unit.bytes.count()), in_gb(unit.bytes),
                          unit.times > 1 ? fmt::format(", x {} like it", unit.times) : "");
      for (const SavedTensor& tensor : unit.tensors) {
        text += fmt::format("    {:<80}{:>20} B   kept by {}\n",
                            tensor_words(tensor.module, tensor.operation, tensor.dtype, tensor.shape),
                            with_commas(tensor.bytes.count()), fmt::join(tensor.kept_by, ", "));
      }
    }
  }
  return text + fmt::format("\n        source: {}\n", client.source);
}

std::string live_text(const ExplainedClient& client, Bytes peak) {
  std::string text = fmt::format("\nAt the peak, {}, the client's live tensors are\n\n", client.peak_at);
  Bytes sum;
  for (const LiveTensors& tensor : client.live) {
    const Bytes bytes = tensor.count * tensor.bytes;
    sum += bytes;
    text += fmt::format("  {:>6} x {:<24}{:<80}{:>20} B   {}\n", with_commas(tensor.count), tensor.unit,
                        tensor_words(tensor.module, tensor.operation, tensor.dtype, tensor.shape),
                        with_commas(bytes.count()), autograd::name(tensor.purpose));
  }
  for (const ClientTerm& term : client.resident) {
    sum += term.bytes;
    text += fmt::format("  {:>6} x {:<104}{:>20} B   {}\n", 1, term.name, with_commas(term.bytes.count()), term.source);
  }
  text += fmt::format("  {:<113}{:>20} B   {}\n", "client", with_commas(sum.count()), in_gb(sum));
  return text + fmt::format("  {:<113}{:>20} B   {}, with what the engine holds then\n", "peak allocated",
                            with_commas(peak.count()), in_gb(peak));
}

}  // namespace

std::string explain_text(const PlanOptions& options, const Explained& explained) {
  const Planned& planned = explained.planned;
  std::string text = heading(options, planned, {});
  text += lines_text(planned.kinds.size() > 1 ? "Each GPU of the kind that holds most holds, at the peak"
                                              : "Each GPU holds, at the peak",
                     explain_device(options, planned));
  text += lines_text("Each GPU sends, in one step", explain_traffic(planned.held, options.setup, planned.report));
  if (explained.client) {
    text += saved_text(*explained.client);
    if (!explained.client->live.empty()) text += live_text(*explained.client, *planned.worst().device.peak_allocated);
  }
  for (const std::string& note : planned.report.notes) text += fmt::format("\nnote: {}\n", note);
  return text;
}

}  // namespace shardplan::memcalc
