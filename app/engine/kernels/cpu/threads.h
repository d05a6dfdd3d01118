// Work shared out over the OpenMP threads that torch runs on.
//
// The library links no OpenMP of its own: a second runtime would bring a second pool of threads
// for the same cores. It is handed the `GOMP_parallel` that torch has loaded (GNU's runtime has it,
// and LLVM's too); without one, everything runs on the calling thread.
#pragma once
#include <atomic>
#include <cstdint>

using GompParallel = void (*)(void (*)(void *), void *, unsigned, unsigned);

static GompParallel gomp_parallel = nullptr;

// Call body(item) for each item below `num_items`; whoever is free takes the next one. What an
// item computes must not depend on the others, so results do not depend on the threads.
//
// A region always asks for all of `num_threads`: GNU's runtime ends the threads that a smaller one
// leaves over, and torch would start them again.
template <class Body>
static void parallel_for(int64_t num_items, int num_threads, Body body) {
  if (num_items < 2 || num_threads < 2 || gomp_parallel == nullptr) {
    for (int64_t item = 0; item < num_items; item++) body(item);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next;
    int64_t num_items;
    Body *body;
  } shared{{0}, num_items, &body};
  auto run = [](void *data) {
    auto *mine = static_cast<Shared *>(data);
    for (;;) {
      int64_t item = mine->next.fetch_add(1, std::memory_order_relaxed);
      if (item >= mine->num_items) return;
      (*mine->body)(item);
    }
  };
  gomp_parallel(run, &shared, static_cast<unsigned>(num_threads), 0);
}

// The same for many small items, `grain` of them together.
template <class Body>
static void parallel_ranges(int64_t num_items, int64_t grain, int num_threads, Body body) {
  int64_t num_ranges = (num_items + grain - 1) / grain;
  parallel_for(num_ranges, num_threads, [&](int64_t range) {
    int64_t end = (range + 1) * grain < num_items ? (range + 1) * grain : num_items;
    for (int64_t item = range * grain; item < end; item++) body(item);
  });
}
