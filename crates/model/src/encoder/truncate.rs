//! How much of each text stays when both do not fit.

/// Shares `room` tokens between a query and a document as `longest_first` of `tokenizers` does:
/// the longer text is cut first, and when both are longer than half, each gets half; of an odd
/// number, the longer one gets the extra token, the document if they are equal.
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
