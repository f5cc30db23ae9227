// What encoders of images have in common: an image is cut into square patches, each of them a token.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "planner/families/decoder.h"

namespace shardplan {

// Reads the sizes of an encoder whose heads share out its width; `defaults` are those of its class. It has no
// vocabulary; and where they have no intermediate size, intermediate_size is not read. Throws ConfigError where
// num_attention_heads does not divide hidden_size.
Architecture read_image_encoder(ModelConfig& config, const Architecture& defaults);

struct ImageSizes {
  std::uint64_t channels = 0;
  std::uint64_t image = 0;  // pixels on a side
  std::uint64_t patch = 0;  // pixels on a side
  std::uint64_t patches() const { return (image / patch) * (image / patch); }
};

// num_channels, image_size and patch_size. Throws ConfigError where a patch is larger than the image.
ImageSizes read_image(ModelConfig& config, const ImageSizes& defaults);

// The convolution that makes one token of each patch.
Modules patches_to_tokens(const std::string& name, const ImageSizes& image, std::uint64_t width, bool bias);

// The numbers in a square of `side` x `side` pixels. Throws ConfigError, with the attribute that `side` is, where they
// are no size.
std::uint64_t numbers_in_square(const ModelConfig& config, std::string_view attribute, std::uint64_t side,
                                std::uint64_t channels);

// The hidden_size of a part that was nested, whose class has `class_default`.
std::uint64_t width_of(const ModelConfig& part, std::uint64_t class_default);

}  // namespace shardplan
