//! How many files and sockets the process may have open.
//!
//! Systems start processes with a soft limit of 1024, for programs that use `select`, and a hard one that is far
//! higher. A picker holds a socket for each endpoint and each connection of a data plane, and past the limit it
//! can neither scrape nor accept; so it takes what it may have, as Go's runtime does.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. The limit now in force; `None` if there is none.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        // A sandbox may forbid it; what was allowed before still is.
        Err(_) => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one_and_stays_there() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise(), hard);
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
        assert_eq!(raise(), hard);
    }
}
