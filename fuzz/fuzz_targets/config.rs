//! Any bytes as a configuration:
//!
//! * the result is a configuration or at least one error, and each error says where and what;
//! * what is accepted renders to a text that is accepted and means the same: rendered once more only comments
//!   differ.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pointsman::config::{Purpose, Settings, Tables, resolve};

static TABLES: LazyLock<Tables> = LazyLock::new(Tables::standard);

fuzz_target!(|data: &[u8]| {
    match resolve("fuzz.yaml", Some(data), Settings::default(), &TABLES, Purpose::Check) {
        Ok(config) => {
            let text = config.render();
            match resolve("again.yaml", Some(text.as_bytes()), Settings::default(), &TABLES, Purpose::Check) {
                Ok(again) => assert_eq!(uncommented(text), uncommented(again.render()), "from:\n{text}"),
                Err(error) => panic!("the rendering is refused:\n{text}\n{error}"),
            }
        }
        Err(error) => {
            assert!(!error.errors.is_empty());
            for problem in error.errors.iter().chain(&error.warnings) {
                assert!(!problem.path.is_empty() && !problem.message.is_empty(), "{problem:?}");
            }
            assert_eq!(error.lines().count(), error.errors.len());
        }
    }
});

fn uncommented(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).collect()
}
