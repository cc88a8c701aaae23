//! Lists.

use rerankd_core::{Limits, RerankError, Texts};
use serde::de::{Error, IgnoredAny, SeqAccess};

use super::{Path, Place, Read, Reader};

/// A list of which no more is kept than a request may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T> {
    /// The first items.
    items: Vec<T>,
    /// How many were sent.
    count: usize,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        let items = Vec::new();
        Self { items, count: 0 }
    }
}

impl<T> List<T> {
    /// Adds an item, which is dropped where there are too many.
    pub fn push(&mut self, item: T, limits: &Limits) {
        if self.items.len() < limits.max_documents {
            self.items.push(item);
        }
        self.count += 1;
    }

    /// Adds a list to this one.
    pub fn append(&mut self, other: Self, limits: &Limits) {
        let room = limits.max_documents - self.items.len();
        self.items.extend(other.items.into_iter().take(room));
        self.count += other.count;
    }

    /// How many items were sent.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none were sent.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Those that are kept.
    pub fn kept(&self) -> &[T] {
        &self.items
    }

    /// As [`List::kept`].
    pub fn into_kept(self) -> Vec<T> {
        self.items
    }

    /// All items of the list that a client calls `field`.
    ///
    /// # Errors
    /// When there are none, or too many.
    pub fn within(self, field: &str, limits: &Limits) -> Result<Vec<T>, RerankError> {
        limits.check(field, self.count)?;
        Ok(self.items)
    }
}

impl List<String> {
    /// Adds a copy of `text`, unless there are too many.
    pub fn push_text(&mut self, text: &str, limits: &Limits) {
        if self.items.len() < limits.max_documents {
            self.items.push(text.to_owned());
        }
        self.count += 1;
    }
}

impl<T: Into<String>> List<T> {
    /// The texts of the list that a client calls `field`.
    ///
    /// # Errors
    /// As [`List::within`].
    pub fn texts(self, field: &'static str, limits: &Limits) -> Result<Texts, RerankError> {
        let items = self.within(field, limits)?;
        let items = items.into_iter().map(Into::into).collect();
        Ok(Texts { field, items })
    }
}

impl<T: Read> Read for List<T> {
    const EXPECTED: &'static str = "a list";

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        let mut list = Self::default();
        while list.count < at.limits.max_documents {
            let path = Path::Item(at.path, list.count);
            match items.next_element_seed(Reader::at(at.at(&path)))? {
                Some(item) => list.push(item, at.limits),
                None => return Ok(list),
            }
        }
        // Only counted, for the refusal.
        while items.next_element::<IgnoredAny>()?.is_some() {
            list.count += 1;
        }
        Ok(list)
    }
}

/// A string or a list of strings.
#[derive(Debug)]
pub struct OneOrMany(pub List<String>);

impl Read for OneOrMany {
    const EXPECTED: &'static str = "a string or a list";

    fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
        let mut list = List::default();
        list.push(text.to_owned(), at.limits);
        Ok(Self(list))
    }

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, items: S) -> Result<Self, S::Error> {
        List::list(at, items).map(Self)
    }
}
