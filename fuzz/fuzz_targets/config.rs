//! Any bytes as a configuration: a configuration or errors, never a panic, and what is accepted
//! renders to something that is accepted.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::config::{Purpose, Settings, Tables, resolve};

fuzz_target!(|data: &[u8]| {
    let tables = Tables::standard();
    match resolve("fuzz.yaml", Some(data), Settings::default(), &tables, Purpose::Check) {
        Ok(config) => {
            let text = config.render().as_bytes();
            if let Err(error) = resolve("again.yaml", Some(text), Settings::default(), &tables, Purpose::Check) {
                panic!("the rendering is refused:\n{}\n{error}", config.render());
            }
        }
        Err(error) => assert!(!error.errors.is_empty()),
    }
});
