// Recorded kernel cases: a program, the inputs of a step, and the bits that it must give.
//
// A file is text lines up to a line "data N", followed by N bytes. Values of fields are i:INTEGER, f:HEXFLOAT, b:0 or 1,
// s:TEXT, l:INTEGER,INTEGER… and a:BLOB (float32); a BLOB is OFFSET+BYTES within the data.
//
//   buffer ROWS ROW_BYTES
//   matrix FORMAT ROWS COLS full|auto BLOB        a packed matrix as weight
//   vector BLOB                                   a float32 vector as weight
//   rope KIND NAME=VALUE…
//   begin_sub NAME, end_sub
//   emit OP NAME=VALUE…
//   input NAME TYPE SHAPE BLOB                    SHAPE is 2x3x4
//   output TYPE SHAPE BLOB                        what output number 0, 1 … must be
//   change NAME OFFSET BLOB                       bytes that the program must have written to an input; all others stay
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/program.h"

namespace puna::replay {

struct RecordedArray {
  ElementType type = ElementType::other;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};

struct Case {
  std::string name;
  std::vector<std::vector<std::string>> lines;  // words of the lines that build the program
  std::vector<uint8_t> data;
  std::map<std::string, RecordedArray> inputs;
  std::vector<RecordedArray> outputs;
  std::map<std::string, RecordedArray> after;  // the inputs as they must be afterwards
};

// Throws std::runtime_error when the file cannot be read or understood.
Case read_case(const std::string& path);

// The program of a case, finished.
std::unique_ptr<Program> build_program(const Case& recorded, const KernelTable& kernels);

}  // namespace puna::replay
