//! Searches for the number of documents within a target latency. Pure.

/// Number of requests for each number of documents.
pub const TRIALS: u64 = 20;
/// How many of them may be late, which puts the 95th percentile within the target.
pub const LATE: u64 = TRIALS / 20;

/// Searches for the largest number of documents that is in time: doubles it until it is late, then
/// bisects.
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

    /// The number to try next; `None` once the result is known to 5 %.
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

    /// Records whether `documents` were answered in time.
    pub fn learn(&mut self, documents: usize, in_time: bool) {
        if in_time {
            self.in_time = self.in_time.max(documents);
        } else {
            self.late = Some(self.late.map_or(documents, |late| late.min(documents)));
        }
    }

    /// The largest number that was in time; 0 if a single document is late.
    pub fn best(&self) -> usize {
        self.in_time
    }

    /// Whether no number was late, so that more might be in time.
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
        fn the_result_is_close_and_never_too_large(limit in 0_usize..1000) {
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
