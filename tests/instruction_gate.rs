//! The gate of `make instructions` must be able to fail, and only where it should.

#[path = "../benches/instructions/table.rs"]
#[allow(dead_code, reason = "the conditions of this machine do not matter here")]
mod table;

use std::path::{Path, PathBuf};

use table::{Conditions, Cost, Table, compare};

fn table(rows: &[(&str, f64, f64)]) -> Table {
    let conditions = Conditions {
        rustc: "1.95.0".into(),
        libc: "glibc 2.36".into(),
        valgrind: "3.19.0".into(),
        cpu: "x86_64 with avx2".into(),
    };
    let row = |(name, instructions, allocations): &(&str, f64, f64)| {
        ((*name).to_owned(), Cost { instructions: *instructions, allocations: *allocations })
    };
    Table { conditions, rows: rows.iter().map(row).collect() }
}

fn problem(recorded: &Table, now: &Table) -> Option<String> {
    compare(recorded, now, "").problem(|name| PathBuf::from(name))
}

#[test]
fn growth_beyond_the_tolerance_fails_and_says_what_grew() {
    let recorded = table(&[("pick", 1000.0, 0.0), ("edge", 50_000.0, 36.0)]);
    assert_eq!(problem(&recorded, &recorded), None);
    assert_eq!(problem(&recorded, &table(&[("pick", 1049.0, 0.0), ("edge", 52_400.0, 36.0)])), None);
    assert_eq!(problem(&recorded, &table(&[("pick", 10.0, 0.0), ("edge", 100.0, 1.0)])), None, "less is no failure");
    let said = problem(&recorded, &table(&[("pick", 1000.0, 0.0), ("edge", 52_600.0, 36.0)])).expect("it fails");
    assert!(said.contains("edge: 50000 instructions became 52600 (+5.2 %") && !said.contains("pick:"), "{said}");
    assert!(said.contains("make instructions ACCEPT=1"), "{said}");
    // A few instructions more are no news, however small the workload.
    assert_eq!(problem(&table(&[("tiny", 100.0, 0.0)]), &table(&[("tiny", 119.0, 0.0)])), None);
}

#[test]
fn any_allocation_more_fails() {
    let recorded = table(&[("decision", 40_000.0, 22.36)]);
    for (allocations, fails) in [(22.36, false), (22.359_375, false), (20.0, false), (22.375, true), (23.36, true)] {
        let said = problem(&recorded, &table(&[("decision", 40_000.0, allocations)]));
        assert_eq!(said.is_some(), fails, "{allocations}: {said:?}");
    }
}

#[test]
fn other_conditions_allow_more_and_another_cpu_compares_allocations_only() {
    let recorded = table(&[("edge", 50_000.0, 36.0)]);
    let mut now = table(&[("edge", 57_000.0, 36.0)]);
    assert!(problem(&recorded, &now).is_some());
    now.conditions.rustc = "1.96.0".into();
    assert_eq!(problem(&recorded, &now), None);
    assert!(compare(&recorded, &now, "").text.contains("rustc differs: recorded with 1.95.0, now 1.96.0"));
    now.rows[0].1.instructions = 58_000.0;
    assert!(problem(&recorded, &now).is_some_and(|said| said.contains("15 %")));
    now.conditions.cpu = "aarch64".into();
    assert_eq!(problem(&recorded, &now), None);
    now.rows[0].1.allocations = 37.0;
    assert!(problem(&recorded, &now).is_some());
}

#[test]
fn the_table_lists_what_there_is() {
    let recorded = table(&[("edge", 1.0, 0.0), ("gone", 1.0, 0.0)]);
    let said = problem(&recorded, &table(&[("edge", 1.0, 0.0), ("new", 1.0, 0.0)])).expect("it fails");
    assert!(said.contains("new: not in the table") && said.contains("gone: in the table"), "{said}");
}

#[test]
fn accepting_some_keeps_the_others() {
    let recorded = table(&[("edge, 1 KB", 100.0, 2.0), ("pick", 50.0, 0.0), ("gone", 1.0, 0.0)]);
    let mut now = table(&[("edge, 1 KB", 200.4, 2.25)]);
    now.conditions.rustc = "1.96.0".into();
    let accepted = recorded.updated(now, "edge", ["edge, 1 KB", "pick"].into_iter());
    let read = Table::read(&accepted.to_string()).expect("it reads what it writes");
    let mut expected = table(&[("edge, 1 KB", 200.0, 2.25), ("pick", 50.0, 0.0)]);
    expected.conditions.rustc = "1.96.0".into();
    assert_eq!(read, expected);
}

#[test]
fn the_committed_table_reads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let committed = Table::read(&std::fs::read_to_string(path).expect("the table")).expect("it reads");
    assert!(committed.rows.len() > 20);
}
