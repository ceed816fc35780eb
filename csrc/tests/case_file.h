// Recorded kernel cases.
//
// A file is text lines up to a line "data N", followed by N bytes. Values of fields are i:INTEGER, f:HEXFLOAT, b:0 or 1,
// s:TEXT, l:INTEGER,INTEGER…, a:BLOB (float32) and u:BLOB (bytes); a BLOB is OFFSET+BYTES within the data. It holds
// either calls of single kernels, operands and the bits of the result together,
//
//   kernel OP NAME=VALUE…
//
// or a program, the inputs of a step, and the bits that it must give:
//
//   buffer ROWS ROW_BYTES
//   matrix FORMAT ROWS COLS full|auto BLOB        a packed matrix as weight
//   vector BLOB                                   a float32 vector as weight
//   rope KIND NAME=VALUE…
//   slots COUNT                                   slots for adapters, before all updates
//   update SLOT LAYER TARGET HEXFLOAT A B          an update of the adapter in a slot; A and B: FORMAT ROWS COLS BLOB
//   begin_sub NAME, end_sub
//   emit OP NAME=VALUE…
//   input NAME TYPE SHAPE BLOB                    SHAPE is 2x3x4
//   output TYPE SHAPE BLOB                        what output number 0, 1 … must be
//   change NAME OFFSET BLOB                       bytes that the program must have written to an input; all others stay
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/array_view.h"
#include "core/fields.h"

namespace puna::replay {

struct RecordedArray {
  ElementType type = ElementType::other;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};

using Words = std::vector<std::string>;

// The file that is being read, or was.
struct Case {
  std::string name;
  std::vector<Words> calls;  // lines "kernel"
  std::vector<Words> lines;  // lines that build the program
  std::vector<uint8_t> data;
  std::map<std::string, RecordedArray> inputs;
  std::vector<RecordedArray> outputs;
  std::map<std::string, RecordedArray> after;  // the inputs as they must be afterwards
};

// All of these throw std::runtime_error for what they cannot read or understand.

Case read_case(const std::string& path);

std::vector<uint8_t> blob(const Case& recorded, const std::string& place);
std::vector<float> floats(const Case& recorded, const std::string& place);
// Fields of a program's line from word `begin` on.
Fields fields_of(const Case& recorded, const Words& words, size_t begin);

// One line "kernel".
class Call {
 public:
  Call(const Case& recorded, const Words& words);

  const std::string& op() const { return op_; }
  bool has(const std::string& name) const { return values_.contains(name); }
  std::string text(const std::string& name) const { return value(name, 's'); }
  bool flag(const std::string& name) const { return value(name, 'b') == "1"; }
  int64_t integer(const std::string& name) const;
  float number(const std::string& name) const;
  std::vector<int64_t> integers(const std::string& name) const;
  std::vector<float> floats(const std::string& name) const;
  std::vector<uint8_t> bytes(const std::string& name) const;

  // "file: name of the call".
  std::string where() const { return recorded_.name + ": " + text("name"); }

 private:
  std::string value(const std::string& name, char kind) const;

  const Case& recorded_;
  std::string op_;
  std::map<std::string, std::string> values_;
};

}  // namespace puna::replay
