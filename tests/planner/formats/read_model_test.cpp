#include "planner/formats/read_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "planner/formats/hf_config.h"
#include "tests/support/config_error.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temporary_folder.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;
using test_support::TemporaryFolder;
using test_support::write_safetensors;

constexpr const char* kConfig =
    R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 100})";

TEST(ReadModel, DispatchesOnWhatThePathIs) {
  const TemporaryFolder folder;
  folder.write("tiny/config.json", kConfig);
  write_safetensors(folder.path("tiny/model.safetensors"), {{"other.weight", DType::f32, {2}}});
  folder.write("renamed.json", kConfig);
  folder.write("list.json", R"({"schema": "shardplan.tensors/1", "tensors": [{"name": "a", "shape": [3]}]})");
  folder.write("named.json",
               R"({"schema": "shardplan.tensors/1", "name": "n", "tensors": [{"name": "a", "shape": [3]}]})");
  folder.write("bare/model.safetensors.index.json", R"({"weight_map": {"w.x": "a.safetensors"}})");
  write_safetensors(folder.path("bare/a.safetensors"), {{"w.x", DType::f32, {5}}});

  struct Case {
    const char* path;
    const char* name;
    const char* family;
    std::uint64_t tensors;
  };
  const Case cases[] = {
      {"tiny", "tiny", "llama", 30},  // the config.json, though there are safetensors too
      {"tiny/", "tiny", "llama", 30},
      {"tiny/config.json", "tiny", "llama", 30},
      {"renamed.json", "renamed", "llama", 30},
      {"tiny/model.safetensors", "model.safetensors", "tensors", 1},
      {"list.json", "list", "tensors", 1},
      {"named.json", "n", "tensors", 1},
      {"bare", "bare", "tensors", 1},
      {"bare/a.safetensors", "a.safetensors", "tensors", 1},
      {"bare/model.safetensors.index.json", "model.safetensors.index.json", "tensors", 1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.path);
    for (const Model& model : {read_model(folder.path(c.path)), find_model(folder.path(c.path))}) {
      EXPECT_EQ(model.catalog.name, c.name);
      EXPECT_EQ(model.catalog.family, c.family);
      EXPECT_EQ(tensor_count(model.catalog), c.tensors);
    }
  }
}

TEST(ReadModel, ErrorsNameTheFile) {
  const TemporaryFolder folder;
  const std::string bad = folder.write("bad/config.json", R"({"model_type": "llama", "hidden_size": -1})");
  expect_config_error([&] { read_model(folder.path("bad")); }, bad, "hidden_size",
                      "expected a positive integer, found -1");
  expect_config_error([&] { find_model(folder.path("bad")); }, bad, "hidden_size", "found -1");
  const std::string broken = folder.write("x.safetensors", "short");
  expect_config_error([&] { read_model(broken); }, broken, "", "is 5 bytes long");
  EXPECT_THROW(read_model(folder.path("absent.json")), IoError);
  EXPECT_THROW(find_model(folder.path("absent.json")), IoError);
  EXPECT_THROW(find_model(folder.path("absent.safetensors")), IoError);
}

// A pipeline's folder: an index and a config.json for each model.
using Files = std::map<std::string, std::string>;

const Files& pipeline_files() {
  static const Files files{
      {"model_index.json", R"({"_class_name": "StableDiffusion3Pipeline", "_diffusers_version": "0.39.0",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"], "text_encoder_2": [null, null],
        "text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"]})"},
      {"transformer/config.json", R"({"_class_name": "SD3Transformer2DModel", "num_layers": 2, "sample_size": 8,
        "attention_head_dim": 4, "num_attention_heads": 3, "joint_attention_dim": 20, "caption_projection_dim": 12,
        "pooled_projection_dim": 14, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 6,
        "dtype": "bfloat16"})"},
      {"text_encoder/config.json", R"({"model_type": "clip_text_model", "hidden_size": 8, "intermediate_size": 16,
        "architectures": ["CLIPTextModelWithProjection"], "vocab_size": 50, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 7, "projection_dim": 14, "torch_dtype": "float16"})"},
      {"text_encoder_3/config.json", R"({"model_type": "t5", "architectures": ["T5EncoderModel"], "vocab_size": 40,
        "d_model": 20, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3})"},
      {"vae/config.json", R"({"_class_name": "AutoencoderKL", "block_out_channels": [8], "norm_num_groups": 4})"},
      {"scheduler/scheduler_config.json", "{}"},
      {"tokenizer/tokenizer_config.json", "{}"},
  };
  return files;
}

// Writes the pipeline to sd3/ with these files changed.
std::string write_pipeline(const TemporaryFolder& folder, const Files& changed = {}) {
  for (const auto& [name, text] : pipeline_files()) {
    folder.write("sd3/" + name, changed.contains(name) ? changed.at(name) : text);
  }
  for (const auto& [name, text] : changed) folder.write("sd3/" + name, text);
  return folder.path("sd3");
}

TEST(ReadModel, APipelineIsMadeOfItsSubFolders) {
  const TemporaryFolder folder;
  const std::string path = write_pipeline(folder);
  const Files& files = pipeline_files();
  const std::string object =
      R"({"_class_name": "StableDiffusion3Pipeline", "transformer": )" + files.at("transformer/config.json") +
      R"(, "text_encoder": )" + files.at("text_encoder/config.json") + R"(, "text_encoder_3": )" +
      files.at("text_encoder_3/config.json") + R"(, "vae": )" + files.at("vae/config.json") + "}";
  const Model expected = model_from_hf_config(object, "nested.json");
  EXPECT_GT(trainable_elements(expected.catalog), 0U);
  EXPECT_LT(trainable_elements(expected.catalog), parameter_elements(expected.catalog));
  for (const char* file : {"", "/", "/model_index.json"}) {
    SCOPED_TRACE(file);
    const Model model = read_model(path + file);
    EXPECT_EQ(model.catalog.name, "sd3");
    EXPECT_EQ(model.catalog.family, "StableDiffusion3Pipeline");
    EXPECT_EQ(model.catalog.runs, expected.catalog.runs);
    EXPECT_EQ(model.catalog.buffers, expected.catalog.buffers);
    EXPECT_EQ(model.modules, expected.modules);
    EXPECT_EQ(model.architecture, expected.architecture);
    EXPECT_EQ(model.catalog.stored_dtype, DType::bf16);  // the trained model's, not the tower's
  }
}

TEST(ReadModel, NotesOfAPipelineNameTheMember) {
  const TemporaryFolder folder;
  const std::string index = pipeline_files().at("model_index.json");
  const std::string with_image_encoder =
      index.substr(0, index.rfind('}')) + R"(, "image_encoder": ["transformers", "SiglipVisionModel"]})";
  const std::string path = write_pipeline(
      folder, {{"model_index.json", with_image_encoder}, {"image_encoder/config.json", R"({"model_type": "siglip"})"}});
  const std::vector<std::string> notes = read_model(path).catalog.notes;
  const auto has = [&](const std::string& beginning) {
    return std::any_of(notes.begin(), notes.end(), [&](const std::string& n) { return n.starts_with(beginning); });
  };
  EXPECT_TRUE(has("image_encoder (SiglipVisionModel) is left out"));
  EXPECT_TRUE(has("transformer: buffers that are no parameters"));
  EXPECT_TRUE(has("vae: not in the file, so the defaults"));
  EXPECT_FALSE(has("scheduler"));
  EXPECT_FALSE(has("tokenizer"));
}

TEST(ReadModel, ErrorsOfAPipelineNameTheFileOfTheFault) {
  struct Case {
    const char* file;
    std::string text;
    const char* key;
    const char* problem;
  };
  const std::string index = pipeline_files().at("model_index.json");
  const auto without = [&](const std::string& part, const std::string& put) {
    std::string text = index;
    return text.replace(text.find(part), part.size(), put);
  };
  const Case cases[] = {
      {"vae/config.json", R"({"_class_name": "AutoencoderKL", "layers_per_block": 0})", "layers_per_block",
       "expected a positive integer"},
      {"vae/config.json", "{", "", "line 1"},
      {"vae/config.json", R"({"_class_name": "DiT"})", "_class_name", R"(expected "AutoencoderKL", found "DiT")"},
      {"transformer/config.json", R"({"_class_name": "SD3Transformer2DModel", "qk_norm": 3})", "qk_norm", "expected"},
      {"transformer/config.json", R"({"model_type": "llama"})", "model_type", R"(expected "SD3Transformer2DModel")"},
      {"transformer/config.json",
       R"({"_class_name": "SD3Transformer2DModel", "pooled_projection_dim": 2147483647, "joint_attention_dim":
          2147483647, "num_attention_heads": 536870911, "attention_head_dim": 4, "caption_projection_dim": 2147483644,
          "num_layers": 1})",
       "context_embedder.weight", "more elements than 64 bits can count"},
      {"text_encoder/config.json", R"({"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]})",
       "architectures", R"(expected ["CLIPTextModelWithProjection"])"},
      {"text_encoder_3/config.json", R"({"model_type": "t5", "d_model": "wide"})", "d_model", "expected"},
      {"text_encoder_3/config.json", R"({"model_type": "t6"})", "model_type", "is not a known family"},
      {"model_index.json", without(R"(["diffusers", "SD3Transformer2DModel"])", "[null, null]"), "transformer",
       "expected the model that is trained"},
      {"model_index.json", without(R"("transformer": ["diffusers", "SD3Transformer2DModel"],)", ""), "transformer",
       "missing"},
      {"model_index.json", without(R"(["diffusers", "AutoencoderKL"])", R"(["diffusers"])"), "vae",
       "expected a library and a class"},
      {"model_index.json", without(R"(["diffusers", "AutoencoderKL"])", R"("AutoencoderKL")"), "vae", "expected"},
      {"model_index.json", without("StableDiffusion3Pipeline", "AutoencoderKL"), "_class_name",
       "expected a pipeline, such as"},
      {"model_index.json", without("StableDiffusion3Pipeline", "FluxPipeline"), "_class_name", "is not a known family"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text);
    const TemporaryFolder folder;
    const std::string path = write_pipeline(folder, {{c.file, c.text}});
    expect_config_error([&] { read_model(path); }, path + "/" + c.file, c.key, c.problem);
  }
  const TemporaryFolder folder;
  const std::string lonely = folder.write("sd3/model_index.json", index);
  try {
    read_model(lonely);
    FAIL() << "no error";
  } catch (const IoError& error) {
    EXPECT_EQ(error.path(), folder.path("sd3/transformer/config.json"));
  }
}

TEST(FindModel, PresetsComeFirstAndTyposAreExplained) {
  EXPECT_EQ(find_model("llama-2-7b").catalog.name, "llama-2-7b");
  expect_config_error([] { find_model("llama-2-7"); }, "llama-2-7", "",
                      "is no preset and no file; the nearest presets are llama-2-7b, llama-2-70b");
}

}  // namespace
}  // namespace shardplan
