//! How many documents a request can hold and still be answered in time. Pure.

/// Requests that decide about one number of documents.
pub const TRIALS: u64 = 20;
/// How many of them may be late: nineteen of twenty in time is a 95th percentile in time.
pub const LATE: u64 = TRIALS / 20;

/// Narrows down the largest number of documents that is answered in time: doubles until one is too
/// large, then halves what is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Largest number known to be in time; 0 at first.
    in_time: usize,
    /// Smallest number known to be late.
    late: Option<usize>,
    max: usize,
}

impl Search {
    /// A search among 1 to `max` documents.
    pub fn new(max: usize) -> Self {
        Self {
            in_time: 0,
            late: None,
            max,
        }
    }

    /// The number to try next; `None` when the answer is known to a twentieth.
    pub fn next(&self) -> Option<usize> {
        match self.late {
            None if self.in_time >= self.max => None,
            None => Some((self.in_time * 2).clamp(1, self.max)),
            Some(late) => {
                let between = late - self.in_time;
                (between > 1 && between * 20 > self.in_time).then(|| self.in_time + between / 2)
            }
        }
    }

    /// Takes in whether `documents` were answered in time.
    pub fn learn(&mut self, documents: usize, in_time: bool) {
        if in_time {
            self.in_time = self.in_time.max(documents);
        } else {
            self.late = Some(self.late.map_or(documents, |late| late.min(documents)));
        }
    }

    /// The largest number that was seen to be in time; 0 when a single document is late.
    pub fn best(&self) -> usize {
        self.in_time
    }

    /// Whether more might be in time than was tried.
    pub fn open_ended(&self) -> bool {
        self.late.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(limit: usize, max: usize) -> (Search, usize) {
        let mut search = Search::new(max);
        let mut tries = 0;
        while let Some(documents) = search.next() {
            search.learn(documents, documents <= limit);
            tries += 1;
        }
        (search, tries)
    }

    #[test]
    fn one_document_may_be_too_many() {
        let (search, tries) = find(0, 1000);
        assert_eq!((search.best(), tries), (0, 1));
        assert!(!search.open_ended());
    }

    #[test]
    fn the_largest_allowed_may_be_in_time() {
        let (search, _) = find(5000, 1000);
        assert_eq!(search.best(), 1000);
        assert!(search.open_ended());
    }

    proptest! {
        #[test]
        fn the_answer_is_never_too_large_and_near(limit in 0_usize..1000) {
            let (search, tries) = find(limit, 1000);
            prop_assert!(search.best() <= limit);
            prop_assert!(limit - search.best() <= limit / 20 + 1);
            prop_assert!(tries <= 16);
        }

        #[test]
        fn it_ends_whatever_the_noise(answers in proptest::collection::vec(any::<bool>(), 64)) {
            let mut search = Search::new(1000);
            let mut answers = answers.into_iter();
            while let Some(documents) = search.next() {
                prop_assert!((1..=1000).contains(&documents));
                search.learn(documents, answers.next().expect("it ends before"));
            }
        }
    }
}
