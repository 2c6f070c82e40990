//! Request or response headers as they came, looked up by lower-case name.

use bytes::Bytes;

/// Headers in arrival order, names in lower case, duplicates kept.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    entries: Vec<(Bytes, Bytes)>,
}

impl Headers {
    /// An empty list with room for `capacity` entries.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity) }
    }

    /// Appends a header. The name is lower-cased here if it was not already.
    pub fn push(&mut self, name: Bytes, value: Bytes) {
        let name = if name.iter().any(u8::is_ascii_uppercase) { Bytes::from(name.to_ascii_lowercase()) } else { name };
        self.entries.push((name, value));
    }

    /// The last value of `name` (lower case) that is UTF-8; others count as absent (protocol 4).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries
            .iter()
            .rev()
            .find(|(n, _)| n.as_ref() == name.as_bytes())
            .and_then(|(_, v)| std::str::from_utf8(v).ok())
    }

    /// The first of `names` that is present.
    pub fn first_of(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// All entries in arrival order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Bytes)> {
        self.entries.iter().map(|(n, v)| (n.as_ref(), v))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<const N: usize> From<[(&'static str, &'static str); N]> for Headers {
    fn from(entries: [(&'static str, &'static str); N]) -> Self {
        let mut headers = Self::with_capacity(N);
        for (name, value) in entries {
            headers.push(Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()));
        }
        headers
    }
}
