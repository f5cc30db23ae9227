#include "planner/formats/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "planner/formats/file.h"
#include "planner/formats/json.h"
#include "planner/formats/json_writer.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kLengthBytes = 8;

constexpr std::pair<std::string_view, DType> kTypes[] = {
    {"BOOL", DType::boolean},
    {"F4", DType::f4},
    {"F6_E2M3", DType::f6_e2m3},
    {"F6_E3M2", DType::f6_e3m2},
    {"U8", DType::u8},
    {"I8", DType::i8},
    {"F8_E5M2", DType::f8_e5m2},
    {"F8_E4M3", DType::f8_e4m3},
    {"F8_E8M0", DType::f8_e8m0},
    {"F8_E4M3FNUZ", DType::f8_e4m3fnuz},
    {"F8_E5M2FNUZ", DType::f8_e5m2fnuz},
    {"I16", DType::i16},
    {"U16", DType::u16},
    {"F16", DType::f16},
    {"BF16", DType::bf16},
    {"I32", DType::i32},
    {"U32", DType::u32},
    {"F32", DType::f32},
    {"C64", DType::c64},
    {"F64", DType::f64},
    {"I64", DType::i64},
    {"U64", DType::u64},
};

std::uint64_t little_endian(std::string_view bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

// The header's text, once its length is believed.
std::string_view header_text(std::string_view beginning, std::uint64_t file_bytes, const std::string& source) {
  const auto fail = [&](const std::string& problem) { throw ConfigError(source, "", problem); };
  if (file_bytes < kLengthBytes || beginning.size() < kLengthBytes) {
    fail(
        fmt::format("is {} bytes long: a safetensors file begins with the 8 bytes of its header's length", file_bytes));
  }
  const std::uint64_t length = little_endian(beginning.substr(0, kLengthBytes));
  if (length > kLargestSafetensorsHeader) {
    fail(fmt::format("says that its header has {} bytes; the format allows {}", length, kLargestSafetensorsHeader));
  }
  if (length > file_bytes - kLengthBytes || length > beginning.size() - kLengthBytes) {
    fail(fmt::format("says that its header has {} bytes, but only {} follow", length, file_bytes - kLengthBytes));
  }
  const std::string_view header = beginning.substr(kLengthBytes, length);
  if (!header.starts_with('{')) fail("its header does not begin with {");
  return header;
}

void check_metadata(JsonView metadata) {
  for (const JsonView entry : metadata.members()) {
    if (!entry.is_string()) entry.fail_expected("a string");
  }
}

SafetensorsTensor parse_tensor(JsonView entry) {
  SafetensorsTensor tensor;
  tensor.name = std::string(entry.key());
  const auto fail = [&](const std::string& problem) { throw ConfigError(entry.source(), tensor.name, problem); };

  const JsonView type = entry["dtype"];
  const auto dtype = parse_safetensors_dtype(type.as_string());
  if (!dtype) type.fail(fmt::format("{} is no dtype of safetensors", type.shown()));
  tensor.dtype = *dtype;
  for (const JsonView dim : entry["shape"].elements()) tensor.shape.push_back(dim.as_digits());

  const JsonView offsets = entry["data_offsets"];
  boost::container::small_vector<std::uint64_t, 2> ends;
  for (const JsonView offset : offsets.elements()) ends.push_back(offset.as_digits());
  if (ends.size() != 2) offsets.fail(fmt::format("expected [begin, end], found {} numbers", ends.size()));
  tensor.begin = ends[0];
  tensor.end = ends[1];
  if (tensor.end < tensor.begin)
    fail(fmt::format("its data ends at {}, before it begins at {}", tensor.end, tensor.begin));

  std::uint64_t data_bits = 0;
  try {
    data_bits = checked_multiply(elements(tensor.shape), bits(tensor.dtype));
  } catch (const ArithmeticOverflow&) {
    fail("its shape has more bits than 64 bits can count");
  }
  if (data_bits % 8 != 0) fail(fmt::format("its {} bits do not fill whole bytes", data_bits));
  if (data_bits / 8 != tensor.end - tensor.begin) {
    fail(fmt::format("dtype and shape make {} bytes, data_offsets {}", data_bits / 8, tensor.end - tensor.begin));
  }
  return tensor;
}

// The data of the tensors, in order, fills the file from data_begin to its end.
void check_cover(const SafetensorsHeader& header, std::uint64_t file_bytes, const std::string& source) {
  std::uint64_t reached = 0;
  const std::string* before = nullptr;
  for (const SafetensorsTensor& tensor : header.tensors) {
    if (tensor.begin != reached) {
      const char* what = tensor.begin < reached ? "overlaps" : "leaves a hole after";
      throw ConfigError(source, tensor.name,
                        fmt::format("its data begins at {}, which {} {}, at {}", tensor.begin, what,
                                    before != nullptr ? "the data of '" + *before + "'" : "the header", reached));
    }
    reached = tensor.end;
    before = &tensor.name;
  }
  const std::uint64_t data_bytes = file_bytes - header.data_begin;
  if (reached != data_bytes) {
    throw ConfigError(source, "",
                      fmt::format("has {} bytes of data, but its header describes {}", data_bytes, reached));
  }
}

}  // namespace

std::optional<DType> parse_safetensors_dtype(std::string_view text) {
  for (const auto& [name, dtype] : kTypes) {
    if (name == text) return dtype;
  }
  return std::nullopt;
}

std::optional<std::string_view> safetensors_dtype_name(DType dtype) {
  for (const auto& [name, known] : kTypes) {
    if (known == dtype) return name;
  }
  return std::nullopt;
}

std::string safetensors_beginning(std::span<SafetensorsTensor> tensors,
                                  std::span<const std::pair<std::string, std::string>> metadata) {
  std::string header = "{";
  const auto member = [&](std::string_view key) {
    if (header.size() > 1) header += ',';
    header += json_quoted(key) + ':';
  };
  if (!metadata.empty()) {
    member("__metadata__");
    std::string texts;
    for (const auto& [key, text] : metadata) {
      texts += fmt::format("{}{}:{}", texts.empty() ? "" : ",", json_quoted(key), json_quoted(text));
    }
    header += "{" + texts + "}";
  }
  std::uint64_t reached = 0;
  for (SafetensorsTensor& tensor : tensors) {
    const auto dtype = safetensors_dtype_name(tensor.dtype);
    const std::uint64_t count = elements(tensor.shape);
    if (!dtype || checked_multiply(count, bits(tensor.dtype)) % 8 != 0) {
      throw ConfigError("safetensors", tensor.name,
                        fmt::format("{} elements of {} cannot be stored in this format", count, name(tensor.dtype)));
    }
    tensor.begin = reached;
    tensor.end = reached = checked_add(reached, bytes_for(tensor.dtype, count).count());
    member(tensor.name);
    header += fmt::format(R"({{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", *dtype,
                          fmt::join(tensor.shape, ","), tensor.begin, tensor.end);
  }
  header += '}';
  header.resize(round_up(header.size(), std::uint64_t{kLengthBytes}), ' ');
  if (header.size() > kLargestSafetensorsHeader) {
    throw ConfigError(
        "safetensors", "",
        fmt::format("a header of {} bytes: the format allows {}", header.size(), kLargestSafetensorsHeader));
  }
  std::string beginning;
  for (std::uint64_t i = 0; i < kLengthBytes; ++i) beginning += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return beginning + header;
}

SafetensorsHeader parse_safetensors_header(std::string_view beginning, std::uint64_t file_bytes,
                                           const std::string& source) {
  const std::string_view text = header_text(beginning, file_bytes, source);
  const JsonDocument document(text, source);
  SafetensorsHeader header;
  header.data_begin = kLengthBytes + text.size();
  header.tensors.reserve(document.root().size());
  for (const JsonView entry : document.root().members()) {
    if (entry.key() == "__metadata__") {
      check_metadata(entry);
    } else {
      header.tensors.push_back(parse_tensor(entry));
    }
  }
  std::sort(header.tensors.begin(), header.tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_cover(header, file_bytes, source);
  return header;
}

SafetensorsHeader read_safetensors_header(const std::string& path) {
  const std::uint64_t bytes = file_bytes(path);
  const std::string length_bytes = read_beginning(path, kLengthBytes);
  const std::uint64_t length = little_endian(length_bytes);
  // A length that cannot be is refused by the parser, from the same bytes.
  const bool possible = length_bytes.size() == kLengthBytes && length <= kLargestSafetensorsHeader;
  return parse_safetensors_header(possible ? read_beginning(path, kLengthBytes + length) : length_bytes, bytes, path);
}

}  // namespace shardplan
