//! Longest-first truncation.

/// Divides `room` tokens between a query and a document like `longest_first` of `tokenizers`: the longer
/// text is truncated first; if both exceed half, each gets half, and the longer one the odd token (the
/// document if they are equal).
///
/// Returns the tokens that each keeps.
pub fn longest_first(query: usize, document: usize, room: usize) -> (usize, usize) {
    if query + document <= room {
        return (query, document);
    }
    let shorter = query.min(document).min(room / 2);
    let longer = room - shorter;
    if query > document {
        (longer, shorter)
    } else {
        (shorter, longer)
    }
}
