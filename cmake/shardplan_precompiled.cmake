# The headers that most sources begin with, read once: it takes a third off the time of a build. Not in preset dev and not
# for clang-tidy: there a source that forgets an include does not compile.
#
# shardplan_precompiled(TARGET library|test)
function(shardplan_precompiled target kind)
  if(NOT SHARDPLAN_PRECOMPILED_HEADERS)
    return()
  endif()
  # So that ccache can tell by what is in them whether they changed, not by when they were made.
  set(for_ccache "$<IF:$<CXX_COMPILER_ID:GNU>,-fpch-preprocess,SHELL:-Xclang -fno-pch-timestamp>")
  set(of_kind shardplan_precompiled_${kind})
  if(NOT TARGET ${of_kind})
    file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/${of_kind}.cpp CONTENT "")
    add_library(${of_kind} OBJECT ${CMAKE_BINARY_DIR}/${of_kind}.cpp)
    target_compile_features(${of_kind} PUBLIC cxx_std_20)
    target_compile_options(${of_kind} PRIVATE ${for_ccache})
    target_link_libraries(${of_kind} PRIVATE fmt::fmt Boost::headers shardplan_options)
    set(headers <algorithm> <array> <chrono> <cstdint> <filesystem> <functional> <map> <memory> <optional> <span> <sstream>
                <string> <string_view> <unordered_map> <variant> <vector> <fmt/format.h>)
    if(kind STREQUAL test)
      target_link_libraries(${of_kind} PRIVATE GTest::gtest Threads::Threads)
      target_compile_options(${of_kind} PRIVATE ${SHARDPLAN_TEST_OPTIONS})
      list(APPEND headers <gtest/gtest.h>)
    endif()
    target_precompile_headers(${of_kind} PRIVATE ${headers})
  endif()
  target_precompile_headers(${target} REUSE_FROM ${of_kind})
  target_compile_options(${target} PRIVATE ${for_ccache})
  get_target_property(type ${target} TYPE)
  if(type STREQUAL EXECUTABLE)  # as the libraries, whose headers these are
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
endfunction()
