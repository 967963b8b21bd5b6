// Runs recorded launches again for the sanitizers, in buffers exactly as large as they were: replay FILE [n]. Without n,
// prints what differs when the blocks run in the opposite order. n takes the n-th barrier out and runs what has it; -1
// none and all.
// The file is written by tests/cuda/test_sanitizers.py.
#include "kernels.h"

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

namespace {

struct Reader {
  std::FILE* file;

  template <class T>
  T number() {
    T value;
    if (std::fread(&value, sizeof(T), 1, file) != 1) std::abort();
    return value;
  }

  std::string bytes() {
    std::string text(size_t(number<int64_t>()), '\0');
    if (!text.empty() && std::fread(text.data(), text.size(), 1, file) != 1) std::abort();
    return text;
  }
};

struct Buffer {
  std::string content;
  int64_t offset;  // of its address in the parameters
  bool compared;   // its bytes do not depend on the order of the blocks
};

struct Launched {
  std::string kernel;
  int64_t blocks;
  int threads;
};

struct Call {
  std::string op, params;
  std::vector<Buffer> buffers;
  std::vector<Launched> launches;

  explicit Call(Reader& from) : op(from.bytes()), params(from.bytes()), buffers(), launches() {
    for (int64_t n = from.number<int64_t>(); n > 0; --n) {
      Buffer one{from.bytes(), from.number<int64_t>(), false};
      one.compared = from.number<int64_t>() != 0;
      buffers.push_back(std::move(one));
    }
    for (int64_t n = from.number<int64_t>(); n > 0; --n) {
      Launched one{from.bytes(), from.number<int64_t>(), 0};
      one.threads = int(from.number<int64_t>());
      launches.push_back(std::move(one));
    }
  }

  // What the buffers hold afterwards.
  std::vector<std::string> run(bool descending) const {
    std::vector<std::unique_ptr<char[]>> memory;
    // Parameters lie where a kernel may read any of their members.
    std::vector<std::max_align_t> aligned(params.size() / sizeof(std::max_align_t) + 1);
    char* const p = reinterpret_cast<char*>(aligned.data());
    std::memcpy(p, params.data(), params.size());
    for (const Buffer& one : buffers) {
      memory.emplace_back(new char[one.content.size()]);
      std::memcpy(memory.back().get(), one.content.data(), one.content.size());
      const char* address = memory.back().get();
      std::memcpy(p + one.offset, &address, sizeof(address));
    }
    for (const Launched& one : launches)
      if (!run_on_host(one.kernel.c_str(), one.blocks, one.threads, p, descending)) std::abort();
    std::vector<std::string> after;
    for (size_t i = 0; i < buffers.size(); ++i) after.emplace_back(memory[i].get(), buffers[i].content.size());
    return after;
  }
};

}  // namespace

int main(int argc, char** argv) {
  Reader reader{std::fopen(argv[1], "rb")};
  if (!reader.file) std::abort();
  const bool all = argc < 3 || std::atoi(argv[2]) < 0;
  const int n = all ? -1 : std::atoi(argv[2]);
  const Barrier dropped = all ? Barrier{-1, ""} : barrier(n);
  dropped_barrier = dropped.number;
  bool differs = false;
  for (int64_t count = reader.number<int64_t>(); count > 0; --count) {
    const Call call(reader);
    if (!all && call.op.rfind(dropped.op, 0) != 0) continue;  // the op, or its backward
    const auto first = call.run(false);
    if (argc > 2) continue;
    const auto second = call.run(true);
    for (size_t i = 0; i < first.size(); ++i)
      if (call.buffers[i].compared && first[i] != second[i]) {
        std::printf("%s: buffer %zu depends on the order of the blocks\n", call.op.c_str(), i);
        differs = true;
      }
  }
  std::printf("%d barriers\n", count_barriers());
  return differs ? 2 : 0;
}
