#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "planner/formats/safetensors.h"
#include "tests/support/config_error.h"
#include "tests/support/property.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temporary_folder.h"

namespace shardplan {
namespace {

using test_support::check_property;
using test_support::expect_config_error;
using test_support::kStoredTypes;
using test_support::length_prefix;
using test_support::safetensors_image;
using test_support::StoredTensor;
using test_support::TemporaryFolder;
using test_support::write_safetensors;

SafetensorsHeader parse(const std::string& header, std::uint64_t data_bytes) {
  return parse_safetensors_header(length_prefix(header.size()) + header, 8 + header.size() + data_bytes,
                                  "m.safetensors");
}

TEST(SafetensorsHeader, ReadsTensorsInTheOrderOfTheirData) {
  const SafetensorsHeader header = parse(R"({"b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [4, 28]},
      "__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
      "scalar": {"dtype": "I64", "shape": [], "data_offsets": [28, 36]},
      "none": {"dtype": "F16", "shape": [0, 18446744073709551615], "data_offsets": [28, 28], "extra": 1}}      )",
                                         36);
  ASSERT_EQ(header.tensors.size(), 4U);
  EXPECT_EQ(header.tensors[0], (SafetensorsTensor{"a", DType::bf16, {2}, 0, 4}));
  EXPECT_EQ(header.tensors[1], (SafetensorsTensor{"b", DType::f32, {2, 3}, 4, 28}));
  EXPECT_EQ(header.tensors[2], (SafetensorsTensor{"none", DType::f16, {0, UINT64_MAX}, 28, 28}));
  EXPECT_EQ(header.tensors[3], (SafetensorsTensor{"scalar", DType::i64, {}, 28, 36}));
  EXPECT_TRUE(parse("{}", 0).tensors.empty());
}

TEST(SafetensorsHeader, KnowsEveryDtypeOfTheFormatAndNoOther) {
  for (const auto& [dtype, name] : kStoredTypes) {
    EXPECT_EQ(parse_safetensors_dtype(name), dtype) << name;
    const std::uint64_t bytes = bits(dtype);  // of 8 elements
    const SafetensorsHeader header =
        parse(fmt::format(R"({{"t": {{"dtype": "{}", "shape": [8], "data_offsets": [0, {}]}}}})", name, bytes), bytes);
    EXPECT_EQ(header.tensors.at(0).dtype, dtype) << name;
  }
  for (const char* name : {"", "fp32", "f32", "float32", "NF4", "F128", "BF16 "}) {
    EXPECT_FALSE(parse_safetensors_dtype(name)) << name;
  }
}

TEST(SafetensorsHeader, RefusesWhatTheFormatForbids) {
  struct Case {
    const char* header;
    std::uint64_t data_bytes;
    const char* key;
    const char* problem;
  };
  const Case cases[] = {
      {R"( {})", 0, "", "does not begin with {"},
      {R"([])", 0, "", "does not begin with {"},
      {R"({"t": )", 0, "", "line 1, column 7: the text ends too early"},
      {R"({} x)", 0, "", "line 1, column 4"},
      {R"({"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "t": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}})",
       2, "t", "appears twice"},
      {R"({"t": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}})", 1, "t.dtype", "appears twice"},
      {R"({"t": 3})", 0, "t", "expected an object, found 3"},
      {R"({"t": {"shape": [1], "data_offsets": [0, 1]}})", 1, "t.dtype", "but the key is missing"},
      {R"({"t": {"dtype": "U8", "data_offsets": [0, 1]}})", 1, "t.shape", "but the key is missing"},
      {R"({"t": {"dtype": "U8", "shape": [1]}})", 1, "t.data_offsets", "but the key is missing"},
      {R"({"t": {"dtype": "fp32", "shape": [1], "data_offsets": [0, 4]}})", 4, "t.dtype",
       "\"fp32\" is no dtype of safetensors"},
      {R"({"t": {"dtype": 5, "shape": [1], "data_offsets": [0, 4]}})", 4, "t.dtype", "expected a string, found 5"},
      {R"({"t": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}})", 1, "t.shape[0]", "found -1"},
      {R"({"t": {"dtype": "U8", "shape": [1, 1.0], "data_offsets": [0, 1]}})", 1, "t.shape[1]", "digits alone"},
      {R"({"t": {"dtype": "U8", "shape": 1, "data_offsets": [0, 1]}})", 1, "t.shape", "expected an array, found 1"},
      {R"({"t": {"dtype": "U8", "shape": [18446744073709551616], "data_offsets": [0, 1]}})", 1, "t.shape[0]",
       "up to 18446744073709551615"},
      {R"({"t": {"dtype": "U8", "shape": [1], "data_offsets": [0]}})", 1, "t.data_offsets",
       "expected [begin, end], found 1"},
      {R"({"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}})", 1, "t.data_offsets", "found 3 numbers"},
      {R"({"t": {"dtype": "U8", "shape": [1], "data_offsets": ["0", 1]}})", 1, "t.data_offsets[0]", "found \"0\""},
      {R"({"t": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}})", 1, "t", "ends at 0, before it begins at 1"},
      {R"({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})", 4, "t", "make 8 bytes, data_offsets 4"},
      {R"({"t": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}})", 2, "t",
       "its 12 bits do not fill whole bytes"},
      {R"({"t": {"dtype": "U8", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}})", 0, "t",
       "more bits than 64 bits"},
      {R"({"t": {"dtype": "F32", "shape": [1152921504606846976], "data_offsets": [0, 0]}})", 0, "t",
       "more bits than 64 bits"},
      {R"({"t": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}})", 2, "t",
       "begins at 1, which leaves a hole after the header, at 0"},
      {R"({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, "b": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]}})",
       5, "b", "begins at 3, which leaves a hole after the data of 'a', at 2"},
      {R"({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}})",
       3, "b", "begins at 1, which overlaps the data of 'a', at 2"},
      {R"({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, "b": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}})",
       2, "b", "overlaps"},
      {R"({"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})", 2, "",
       "has 2 bytes of data, but its header describes 1"},
      {R"({"t": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}})", 2, "",
       "has 2 bytes of data, but its header describes 3"},
      {R"({})", 1, "", "has 1 bytes of data, but its header describes 0"},
      {R"({"__metadata__": {"format": 1}})", 0, "__metadata__.format", "expected a string, found 1"},
      {R"({"__metadata__": {"format": null}})", 0, "__metadata__.format", "expected a string, found null"},
      {R"({"__metadata__": []})", 0, "__metadata__", "expected an object"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.header);
    expect_config_error([&] { parse(c.header, c.data_bytes); }, "m.safetensors", c.key, c.problem);
  }
}

TEST(SafetensorsHeader, RefusesLengthsThatLie) {
  struct Case {
    std::string bytes;
    std::uint64_t file_bytes;
    const char* problem;
  };
  const Case cases[] = {
      {"", 0, "is 0 bytes long"},
      {"1234567", 7, "is 7 bytes long: a safetensors file begins with the 8 bytes"},
      {length_prefix(3) + "{}", 10, "says that its header has 3 bytes, but only 2 follow"},
      {length_prefix(100'000'000), 8, "says that its header has 100000000 bytes, but only 0 follow"},
      {length_prefix(100'000'001), 200'000'000, "has 100000001 bytes; the format allows 100000000"},
      {length_prefix(UINT64_MAX) + "{}", 10, "the format allows 100000000"},
      {length_prefix(UINT64_MAX - 7) + "{}", 10, "the format allows 100000000"},
      {length_prefix(0), 8, "does not begin with {"},
      {length_prefix(1) + "{}", 10, "the text ends too early"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.problem);
    expect_config_error([&] { parse_safetensors_header(c.bytes, c.file_bytes, "m.safetensors"); }, "m.safetensors", "",
                        c.problem);
    const TemporaryFolder folder;
    const std::string path = folder.write("lie.safetensors", c.bytes);
    std::filesystem::resize_file(path, c.file_bytes);
    expect_config_error([&] { read_safetensors_header(path); }, path, "", c.problem);
  }
}

TEST(SafetensorsHeader, ReadsNothingOfTheData) {
  const TemporaryFolder folder;
  const std::string path = folder.path("large.safetensors");
  write_safetensors(path, {{"w", DType::f32, {1U << 20, 64}}});  // 256 MiB of hole
  EXPECT_EQ(read_safetensors_header(path).tensors.at(0).end, std::uint64_t{256} << 20);
}

TEST(SafetensorsHeader, UnreadableFilesAreIoErrors) {
  const TemporaryFolder folder;
  try {
    read_safetensors_header(folder.path("absent.safetensors"));
    FAIL() << "no error";
  } catch (const IoError& error) {
    EXPECT_EQ(error.path(), folder.path("absent.safetensors"));
    EXPECT_EQ(error.error_number(), ENOENT);
  }
  try {
    read_safetensors_header(folder.path());
    FAIL() << "no error";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), EISDIR);
  }
}

TEST(SafetensorsHeader, TruncatingAFileAnywhereIsAnError) {
  const auto image = safetensors_image({{"a", DType::f32, {3}}, {"b.c", DType::u8, {5}}});
  const std::string whole = image.beginning + std::string(image.file_bytes - image.beginning.size(), 'x');
  ASSERT_NO_THROW(parse_safetensors_header(whole, whole.size(), "f"));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THROW(parse_safetensors_header(whole.substr(0, size), size, "f"), ConfigError) << size;
  }
  EXPECT_THROW(parse_safetensors_header(whole + "x", whole.size() + 1, "f"), ConfigError);
}

rc::Gen<StoredTensor> any_stored_tensor() {
  return rc::gen::exec([] {
    StoredTensor tensor;
    tensor.dtype = kStoredTypes.at(*rc::gen::inRange<std::size_t>(0, kStoredTypes.size())).first;
    const auto dims = *rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(0, 9));
    for (std::size_t i = 0; i < dims.size() && i < 5; ++i) tensor.shape.push_back(dims[i]);
    if (bits(tensor.dtype) % 8 != 0) tensor.shape.push_back(8);  // whole bytes
    return tensor;
  });
}

TEST(SafetensorsHeader, ReadsBackWhatWasWritten) {
  check_property(200, [] {
    auto tensors = *rc::gen::container<std::vector<StoredTensor>>(any_stored_tensor());
    for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].name = fmt::format("{}.weight", i);
    const auto image = safetensors_image(tensors);
    const SafetensorsHeader header = parse_safetensors_header(image.beginning, image.file_bytes, "file");
    RC_ASSERT(header.tensors.size() == tensors.size());
    RC_ASSERT(header.data_begin == image.beginning.size());
    for (const SafetensorsTensor& read : header.tensors) {
      const StoredTensor& written = tensors.at(std::stoul(read.name));
      RC_ASSERT(read.dtype == written.dtype);
      RC_ASSERT(read.shape == written.shape);
      RC_ASSERT(Bytes{read.end - read.begin} == bytes_for(written.dtype, elements(written.shape)));
    }
  });
}

}  // namespace
}  // namespace shardplan
