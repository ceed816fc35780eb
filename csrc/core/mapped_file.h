// A file in memory that may be cut by others while it is mapped.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace puna {

// A read-only mapping of a whole regular file.
//
// Touching a page behind the end of a file raises SIGBUS. The first mapping installs a handler for the whole process:
// on a fault inside one of our mappings it puts zero pages over the rest of that mapping, marks the mapping as damaged,
// and the read goes on; any other fault goes to the handler that was there before.
class MappedFile {
 public:
  // Throws std::system_error (with errno) when the file cannot be opened or mapped, std::invalid_argument when it is
  // not a regular file or empty, std::runtime_error when too many files are mapped at once.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  // Whether part of the file was gone when it was read: what was read since then may be zeros.
  bool is_damaged() const;

  // Lets the pages of a range go that lies inside some mapping, and what the system may have mapped along with them. They
  // stay in the system's cache of the file and come back when they are read; a range elsewhere is left alone.
  static void release(const uint8_t* data, int64_t bytes);
  void release() const { release(data_, size_); }

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  int slot_ = -1;
};

}  // namespace puna
