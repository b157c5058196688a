#pragma once
#include <algorithm>
#include <vector>

#include "cpu/kernels/parallel.h"
#include "ops/parents.h"

// The sequences of a packed batch and the tiles that attention cuts them into.

namespace rlhf::RLHF_ISA {

inline constexpr int64_t kTile = 64;

/// A sequence's positions: first those of its parent's rows, then those of its own.
struct Sequence {
  int64_t begin, length;  // its own rows
  int64_t parent;         // −1: none
  int64_t parentBegin;    // the parent's first row
  int64_t inherited;      // positions that are the parent's rows
  int64_t firstChild = -1, nextSibling = -1;

  int64_t positions() const { return inherited + length; }
  /// Tiles are cut at multiples of kTile positions; those of its own rows are [firstTile, endTile).
  int64_t firstTile() const { return inherited / kTile; }
  int64_t endTile() const { return ceilDivide(positions(), kTile); }
};

/// Those of a sequence's own rows that lie in one tile.
struct SequenceTile {
  const Sequence* sequence;
  int64_t tile;

  int64_t position() const { return std::max(sequence->inherited, tile * kTile); }  // of the first row
  int64_t rows() const { return std::min((tile + 1) * kTile, sequence->positions()) - position(); }
  int64_t row() const { return sequence->begin + position() - sequence->inherited; }  // the first, in the batch
};

/// Position of the oldest key that the query at `position` sees.
constexpr int64_t firstVisibleKey(int64_t position, int64_t window) {
  return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
}

/// Pairs of a query and a key that it sees in a sequence of `length`.
constexpr int64_t visiblePairs(int64_t length, int64_t window) {
  const int64_t hidden = window > 0 ? std::max<int64_t>(0, length - window) : 0;
  return length * (length + 1) / 2 - hidden * (hidden + 1) / 2;
}

class Sequences {
 public:
  template <class Arguments>
  Sequences(const char* op, const Arguments& a) : window_(a.window) {
    requireParents(op, a.parents, a.sequences);
    items_.reserve(static_cast<size_t>(a.sequences));
    for (int64_t s = 0; s < a.sequences; ++s) {
      const int64_t parent = a.parents ? a.parents[s] : -1;
      const int64_t parentBegin = parent < 0 ? 0 : a.offsets[parent];
      const int64_t inherited = parent < 0 ? 0 : a.offsets[parent + 1] - parentBegin;
      items_.push_back({a.offsets[s], a.offsets[s + 1] - a.offsets[s], parent, parentBegin, inherited});
      if (parent < 0) roots_.push_back(s);
    }
    for (int64_t s = a.sequences; s-- > 0;) {
      Sequence& child = at(s);
      if (child.parent < 0) continue;
      child.nextSibling = at(child.parent).firstChild;
      at(child.parent).firstChild = s;
    }
  }

  int64_t size() const { return static_cast<int64_t>(items_.size()); }
  const Sequence& operator[](int64_t s) const { return items_[static_cast<size_t>(s)]; }
  /// Sequences without a parent.
  const std::vector<int64_t>& roots() const { return roots_; }

  /// Calls body for a root and then for its children, in the batch's order.
  template <class Body>
  void forEachOfFamily(const Sequence& root, Body&& body) const {
    body(root);
    for (int64_t s = root.firstChild; s >= 0; s = (*this)[s].nextSibling) body((*this)[s]);
  }

  /// Pairs of a query among a sequence's own rows and a key that it sees.
  int64_t pairs(const Sequence& sequence) const {
    return visiblePairs(sequence.positions(), window_) - visiblePairs(sequence.inherited, window_);
  }

 private:
  Sequence& at(int64_t s) { return items_[static_cast<size_t>(s)]; }

  int64_t window_;
  std::vector<Sequence> items_;
  std::vector<int64_t> roots_;
};

/// Every tile of every head of a packed batch: sequence after sequence, then head after head, so that the
/// tiles in flight share rows in the caches; the last and most expensive tile of a head first.
class TileList {
 public:
  struct Item {
    SequenceTile tile;
    int64_t head;
  };

  TileList(const Sequences& sequences, int64_t heads) : sequences_(sequences), heads_(heads) {
    ends_.reserve(static_cast<size_t>(sequences.size()));
    for (int64_t s = 0; s < sequences.size(); ++s) {
      size_ += heads * (sequences[s].endTile() - sequences[s].firstTile());
      ends_.push_back(size_);
      pairs_ += heads * sequences.pairs(sequences[s]);
    }
  }
  int64_t size() const { return size_; }
  /// Pairs of a query and a key that it sees, over all heads.
  int64_t pairs() const { return pairs_; }

  Item operator[](int64_t index) const { return group(index, 1); }

  /// The same with `together` neighbouring heads as one: `groups` items, each naming its first head.
  int64_t groups(int64_t together) const { return size_ / heads_ * ceilDivide(heads_, together); }
  Item group(int64_t index, int64_t together) const {
    const int64_t perTile = ceilDivide(heads_, together);
    const auto end = std::upper_bound(ends_.begin(), ends_.end(), index / perTile * heads_);
    const Sequence& sequence = sequences_[end - ends_.begin()];
    const int64_t tiles = sequence.endTile() - sequence.firstTile();
    const int64_t local = index - (*end / heads_ - tiles) * perTile;
    return {{&sequence, sequence.endTile() - 1 - local % tiles}, local / tiles * together};
  }

 private:
  const Sequences& sequences_;
  int64_t heads_;
  std::vector<int64_t> ends_;
  int64_t size_ = 0, pairs_ = 0;
};

}  // namespace rlhf::RLHF_ISA
