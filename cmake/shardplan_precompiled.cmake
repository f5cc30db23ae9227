# The headers that most sources begin with, read once: it takes a third off the time of a sanitizer's build (clang). Not in
# the other presets: there a source that forgets an include must not compile.
#
# shardplan_precompiled(TARGET library|test)
function(shardplan_precompiled target kind)
  if(NOT SHARDPLAN_PRECOMPILED_HEADERS)
    return()
  endif()
  set(of_kind shardplan_precompiled_${kind})
  if(NOT TARGET ${of_kind})
    file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/${of_kind}.cpp CONTENT "")
    add_library(${of_kind} OBJECT ${CMAKE_BINARY_DIR}/${of_kind}.cpp)
    target_compile_features(${of_kind} PUBLIC cxx_std_20)
    # ccache hashes what is in the file, not when it was made.
    target_compile_options(${of_kind} PRIVATE -Xclang -fno-pch-timestamp)
    target_link_libraries(${of_kind} PRIVATE fmt::fmt Boost::headers shardplan_options)
    set(headers <algorithm> <array> <chrono> <cstdint> <filesystem> <functional> <map> <memory> <optional> <span> <sstream>
                <string> <string_view> <unordered_map> <variant> <vector> <fmt/format.h>)
    if(kind STREQUAL test)
      target_link_libraries(${of_kind} PRIVATE GTest::gtest Threads::Threads)
      list(APPEND headers <gtest/gtest.h>)
    endif()
    target_precompile_headers(${of_kind} PRIVATE ${headers})
  endif()
  target_precompile_headers(${target} REUSE_FROM ${of_kind})
  target_compile_options(${target} PRIVATE -Xclang -fno-pch-timestamp)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL EXECUTABLE)  # as the libraries, whose headers these are
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
endfunction()
