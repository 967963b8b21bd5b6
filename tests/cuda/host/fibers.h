// The threads of a block as fibers of one thread, which take turns at barriers: many times faster than threads. A fiber
// runs until it has to wait. ThreadSanitizer is told of them: to it they run at the same time, and only a barrier, the
// begin and the end of a kernel bring them into an order.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define MDEPTH_UNSEEN [[gnu::no_sanitize("thread")]]  // the fibers' own bookkeeping is no race
#else
#define MDEPTH_UNSEEN
#endif

class Fibers {
 public:
  // Calls `run(t)` for t below `count`, each in a fiber; `resumed(t)` before a fiber goes on.
  MDEPTH_UNSEEN static void run_all(int count, const std::function<void(int)>& run,
                                    const std::function<void(int)>& resumed) {
    static std::vector<std::unique_ptr<Fiber>> fibers;  // kept: the next kernel needs them again
    while (int(fibers.size()) < count) fibers.push_back(std::make_unique<Fiber>(int(fibers.size())));
    body_ = &run;
    release(&body_);
    for (int t = 0; t < count; ++t) fibers[size_t(t)]->done = false;
    for (int left = count; left > 0;)
      for (int t = 0; t < count; ++t) {
        Fiber& fiber = *fibers[size_t(t)];
        if (fiber.done) continue;
        resumed(t);
        resume(fiber);
        if (fiber.done) --left;
      }
    acquire(&current_);
  }

  // Lets the others go on.
  MDEPTH_UNSEEN static void yield() { pause(*current_); }

  // What was done before a release is seen after an acquire of the same address.
#if defined(__SANITIZE_THREAD__)
  static void release(void* at) { __tsan_release(at); }
  static void acquire(void* at) { __tsan_acquire(at); }
#else
  static void release(void*) {}
  static void acquire(void*) {}
#endif

 private:
  static constexpr size_t kStack = 256 * 1024;

  struct Fiber {
    explicit Fiber(int index) : index(index), stack(new char[kStack]) {
      getcontext(&context);
      context.uc_stack.ss_sp = stack.get();
      context.uc_stack.ss_size = kStack;
      context.uc_link = nullptr;
      makecontext(&context, &Fibers::work, 0);
#if defined(__SANITIZE_THREAD__)
      known = __tsan_create_fiber(0);
#endif
    }

    int index;
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    std::jmp_buf place;
    void* known = nullptr;  // to ThreadSanitizer
    bool started = false, done = false;
  };

#if defined(__SANITIZE_THREAD__)  // which follows no jump to another stack
  MDEPTH_UNSEEN static void resume(Fiber& fiber) {
    current_ = &fiber;
    scheduler_known_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber.known, __tsan_switch_to_fiber_no_sync);
    swapcontext(&scheduler_, &fiber.context);
  }

  MDEPTH_UNSEEN static void pause(Fiber& fiber) {
    __tsan_switch_to_fiber(scheduler_known_, __tsan_switch_to_fiber_no_sync);
    swapcontext(&fiber.context, &scheduler_);
  }

  static inline ucontext_t scheduler_;
  static inline void* scheduler_known_ = nullptr;
#else  // no system call
  static void resume(Fiber& fiber) {
    current_ = &fiber;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }

  static void pause(Fiber& fiber) {
    if (_setjmp(fiber.place) == 0) _longjmp(scheduler_, 1);
  }

  static inline std::jmp_buf scheduler_;
#endif

  MDEPTH_UNSEEN static void work() {
    Fiber& self = *current_;
    for (;;) {
      acquire(&body_);
      (*body_)(self.index);
      release(&current_);
      self.done = true;
      pause(self);
    }
  }

  static inline Fiber* current_ = nullptr;
  static inline const std::function<void(int)>* body_ = nullptr;
};

// std::barrier for fibers.
class Meeting {
 public:
  explicit Meeting(std::ptrdiff_t count) : count_(count) {}

  MDEPTH_UNSEEN void arrive_and_wait() {
    const unsigned round = round_;
    // Who leaves late must not see what others did on their way to the next meeting.
    void* const seen = &seen_[round % 2];
    Fibers::release(seen);
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++round_;
    }
    while (round_ == round) Fibers::yield();
    Fibers::acquire(seen);
  }

 private:
  std::ptrdiff_t count_, arrived_ = 0;
  unsigned round_ = 0;
  char seen_[2];
};
