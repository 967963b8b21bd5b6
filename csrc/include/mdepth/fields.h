// The members of parameter structs by name, for callers that fill them from another language. Include it before the
// headers of the ops: MDEPTH_FIELDS(Struct, members in order) then defines `fields(Tag<Struct>)`.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace mdepth {

struct Field {
  const char* name;
  size_t offset, size, alignment;
  char kind;  // as Python's struct module has it: i, q, d, ?, P (an address); e: an enumeration, an int
  int count;  // of elements, 1 unless it is an array
};

template <class Params>
struct Tag {};

template <class T>
constexpr char kind_of() {
  if (std::is_pointer<T>::value) return 'P';
  if (std::is_enum<T>::value) return 'e';
  if (std::is_same<T, bool>::value) return '?';
  if (std::is_same<T, double>::value) return 'd';
  return sizeof(T) == 4 ? 'i' : 'q';
}

template <class T>
constexpr Field field_of(const char* name, size_t offset) {
  using Element = std::remove_extent_t<T>;
  return {name, offset, sizeof(T), alignof(T), kind_of<Element>(), int(sizeof(T) / sizeof(Element))};
}

// Whether fields in this order fill a struct: none was left out, but where padding hides it.
template <size_t count>
constexpr bool complete(const Field (&fields)[count], size_t size, size_t alignment) {
  size_t end = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t a = fields[i].alignment;
    if (fields[i].offset != (end + a - 1) / a * a) return false;
    end = fields[i].offset + fields[i].size;
  }
  return (end + alignment - 1) / alignment * alignment == size;
}

struct Fields {
  const Field* begin;
  int count;
  size_t size;  // of the struct
};

}  // namespace mdepth

// MDEPTH_EACH(m, a, x, y, ...): m(a, x) m(a, y) ...
#define MDEPTH_PARENS ()
#define MDEPTH_SCAN(...) MDEPTH_SCAN2(MDEPTH_SCAN2(MDEPTH_SCAN2(MDEPTH_SCAN2(__VA_ARGS__))))
#define MDEPTH_SCAN2(...) MDEPTH_SCAN1(MDEPTH_SCAN1(MDEPTH_SCAN1(MDEPTH_SCAN1(__VA_ARGS__))))
#define MDEPTH_SCAN1(...) __VA_ARGS__
#define MDEPTH_EACH(m, a, ...) MDEPTH_SCAN(MDEPTH_EACH1(m, a, __VA_ARGS__))
#define MDEPTH_EACH1(m, a, x, ...) m(a, x) __VA_OPT__(MDEPTH_EACH2 MDEPTH_PARENS(m, a, __VA_ARGS__))
#define MDEPTH_EACH2() MDEPTH_EACH1

#define MDEPTH_FIELD(Params, member) field_of<decltype(Params::member)>(#member, offsetof(Params, member)),
#define MDEPTH_FIELDS(Params, ...)                                                                     \
  inline Fields fields(Tag<Params>) {                                                                  \
    static constexpr Field all[] = {MDEPTH_EACH(MDEPTH_FIELD, Params, __VA_ARGS__)};                   \
    static_assert(complete(all, sizeof(Params), alignof(Params)), #Params ": a member is not listed"); \
    return {all, int(sizeof(all) / sizeof(all[0])), sizeof(Params)};                                   \
  }
