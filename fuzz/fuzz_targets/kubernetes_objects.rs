//! Any text as the objects that a watch delivers, and as a label selector:
//!
//! * each object is used, passed over or refused with a reason, and never otherwise;
//! * a pod that is used makes at most one endpoint per port, each with a name and an address of its own that can be
//!   connected to;
//! * a pool that is used has one to eight ports without duplicates, and a selector that the API accepts;
//! * policies can be made of every rewrite and objective.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use pointsman::discovery::kubernetes::objects::{Object, PodFacts, PoolFacts, PoolRef, Read};
use pointsman::discovery::kubernetes::{GROUP_V1, GROUP_V1ALPHA2, selector};
use pointsman::domain::{ObjectiveSpec, Policies, RewriteSpec};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(why) = selector::check(text) {
        assert!(!why.is_empty());
    }
    if let Ok(Read::Present(pod)) = PodFacts::read(text, &()) {
        let ports = [8000, 8001, 9000];
        let endpoints = pod.endpoints("default", &ports);
        assert!(endpoints.len() <= ports.len());
        let names: BTreeSet<_> = endpoints.iter().map(|e| &e.name).collect();
        let addresses: BTreeSet<_> = endpoints.iter().map(|e| e.address).collect();
        assert_eq!((names.len(), addresses.len()), (endpoints.len(), endpoints.len()));
        assert!(endpoints.iter().all(|e| !e.address.ip().is_unspecified() && ports.contains(&e.address.port())));
    }
    for group in [GROUP_V1, GROUP_V1ALPHA2] {
        if let Ok(Read::Present(pool)) = PoolFacts::read(text, &group.to_owned()) {
            let ports: BTreeSet<_> = pool.ports.iter().collect();
            assert!(!ports.is_empty() && ports.len() <= 8 && ports.len() == pool.ports.len());
            assert!(pool.ports.iter().all(|port| *port > 0));
            assert!(selector::check(&pool.selector).is_ok(), "{:?}", pool.selector);
        }
    }
    let pool = PoolRef { name: "p".to_owned(), group: GROUP_V1.to_owned() };
    let objective = match ObjectiveSpec::read(text, &pool) {
        Ok(Read::Present(objective)) => Some(objective),
        _ => None,
    };
    let rewrite = match RewriteSpec::read(text, &pool) {
        Ok(Read::Present(rewrite)) => Some(rewrite),
        _ => None,
    };
    let policies = Policies::new(objective.into_iter().collect(), rewrite.into_iter().collect());
    if let Some(rule) = policies.rule("m") {
        // Whatever is drawn, the choice is one of the targets.
        let _ = rule.choose(|below| below.saturating_sub(1));
    }
});
