# Writes INPUT's bytes as a C++ array. Run by shardplan_embed with -P.
file(READ ${INPUT} bytes HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
get_filename_component(name ${INPUT} NAME)
file(WRITE ${OUTPUT} "// Generated from ${name}: do not edit.
#include <string_view>
namespace shardplan::data {
namespace {
constexpr unsigned char kBytes[] = {
${bytes}
0x00};
}  // namespace
extern const std::string_view ${SYMBOL};
const std::string_view ${SYMBOL}(reinterpret_cast<const char*>(kBytes), sizeof(kBytes) - 1);
}  // namespace shardplan::data
")
