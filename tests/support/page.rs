//! A page of metrics as a scraper would read it, strictly: what a scraper would refuse fails the test.

use std::collections::{BTreeMap, BTreeSet, HashMap};

type Labels = BTreeMap<String, String>;

/// A parsed page.
#[derive(Debug, Default)]
pub struct Page {
    /// By name: labels and value.
    series: HashMap<String, Vec<(Labels, f64)>>,
    kinds: BTreeMap<String, String>,
}

impl Page {
    /// Reads a page in the text format; panics with the line that a scraper would not take.
    pub fn parse(text: &str) -> Self {
        let mut page = Self::default();
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                let (keyword, rest) = comment.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(["HELP", "TYPE"].contains(&keyword), "{line}");
                if let ("TYPE", Some((name, kind))) = (keyword, rest.split_once(' ')) {
                    let twice = page.kinds.insert(name.to_owned(), kind.to_owned());
                    assert_eq!(twice, None, "the type of {name} is given twice");
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number in {line:?}"));
            let (name, labels) = match series.split_once('{') {
                Some((name, rest)) => (name, labels(rest.strip_suffix('}').unwrap_or_else(|| panic!("{line:?}")))),
                None => (series, BTreeMap::new()),
            };
            assert!(seen.insert((name.to_owned(), labels.clone())), "{series} is on the page twice");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(page.kinds.contains_key(name) || page.kinds.contains_key(family), "{name} has no TYPE before it");
            page.series.entry(name.to_owned()).or_default().push((labels, value));
        }
        page
    }

    /// Sum over the series of `name` that have all of `labels`; 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).sum()
    }

    /// Whether any series of `name` has all of `labels`.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    /// The family's type, if it is on the page.
    pub fn kind(&self, family: &str) -> Option<&str> {
        self.kinds.get(family).map(String::as_str)
    }

    /// All families.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    /// Values of one label over the series of `name`.
    pub fn label_values(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (labels, value) in self.series.get(name).into_iter().flatten() {
            *sums.entry(labels.get(label).cloned().unwrap_or_default()).or_default() += value;
        }
        sums
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let fits = |have: &Labels| labels.iter().all(|(key, value)| have.get(*key).is_some_and(|have| have == value));
        self.series.get(name).into_iter().flatten().filter(move |(have, _)| fits(have)).map(|(_, value)| *value)
    }
}

/// `a="b",c="d"` with the three escapes of the format.
fn labels(text: &str) -> Labels {
    let mut found = Labels::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label in {text:?}"));
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (at, c) in after.char_indices() {
            match (escaped, c) {
                (true, 'n') => value.push('\n'),
                (true, '\\' | '"') => value.push(c),
                (true, _) => panic!("unknown escape in {text:?}"),
                (false, '\\') => {}
                (false, '"') => {
                    end = Some(at);
                    break;
                }
                (false, _) => value.push(c),
            }
            escaped = !escaped && c == '\\';
        }
        let end = end.unwrap_or_else(|| panic!("a label without end in {text:?}"));
        assert_eq!(found.insert(name.to_owned(), value), None, "label {name} twice in {text:?}");
        rest = after[end + 1..].strip_prefix(',').unwrap_or(&after[end + 1..]);
    }
    found
}
