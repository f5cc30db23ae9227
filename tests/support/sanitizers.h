// Which sanitizer the tests are compiled with: SHARDPLAN_ADDRESS_SANITIZER, SHARDPLAN_THREAD_SANITIZER.
#pragma once

#if defined(__has_feature)  // clang
#if __has_feature(address_sanitizer)
#define SHARDPLAN_ADDRESS_SANITIZER 1
#endif
#if __has_feature(thread_sanitizer)
#define SHARDPLAN_THREAD_SANITIZER 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)  // g++
#define SHARDPLAN_ADDRESS_SANITIZER 1
#endif
#if defined(__SANITIZE_THREAD__)
#define SHARDPLAN_THREAD_SANITIZER 1
#endif
