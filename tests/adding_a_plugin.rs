//! The walk-through in `docs/adding-a-plugin.md` must stay true. Its code is compiled and run as a
//! doctest (see `src/scheduling.rs`); here the files, tables and names that it sends the reader to
//! are looked up.

use std::fs;
use std::path::Path;

const DOC: &str = include_str!("../docs/adding-a-plugin.md");
/// The file that the reader writes.
const NEW_FILE: &str = "src/scheduling/scorers/zone.rs";

fn source(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Everything in single backquotes outside code blocks.
fn quoted() -> Vec<&'static str> {
    let prose = DOC.split("```").step_by(2);
    prose.flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn the_files_that_are_named_exist() {
    let is_path = |name: &&str| ["src/", "tests/", "benches/"].iter().any(|root| name.starts_with(root));
    let paths: Vec<_> = quoted().into_iter().filter(is_path).collect();
    assert!(paths.len() >= 9, "{paths:?}");
    for path in paths {
        if path == NEW_FILE {
            let folder = Path::new(path).parent().unwrap().to_str().unwrap();
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).is_dir());
        } else {
            assert!(!source(path).is_empty());
        }
    }
}

#[test]
fn the_tables_are_where_the_page_says() {
    let rows = DOC.lines().filter(|line| line.starts_with("| ") && line.contains(".rs` |"));
    let mut tables = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(|c| c.trim().trim_matches('`')).collect();
        let (point, table) = (cells[2], cells[3]);
        assert!(source("src/scheduling/plugin.rs").contains(&format!("pub trait {point}:")), "{point}");
        assert!(source(table).contains("pub const TABLE: &[Row]"), "{table}");
        tables += 1;
    }
    assert_eq!(tables, 7);
}

#[test]
fn the_code_is_a_doctest_and_the_new_type_is_free() {
    assert!(source("src/scheduling.rs").contains("include_str!(\"../docs/adding-a-plugin.md\")"));
    assert_eq!(DOC.matches("```rust\n").count(), 1, "every Rust block runs, there is one");
    for table in ["filters", "scorers", "pickers", "handlers"] {
        assert!(!source(&format!("src/scheduling/{table}.rs")).contains("zone"), "pick another example");
    }
    assert!(source("tests/plugins.rs").contains("const BURDENS"));
    for name in quoted().into_iter().filter(|n| ["Built", "Watch", "Commit", "Cycle"].contains(n)) {
        assert!(source("src/scheduling/plugin.rs").contains(name));
    }
}
