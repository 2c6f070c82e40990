//! Pointsman in a cluster: a real kube-apiserver over a real etcd, and in front of it all a real Envoy. No kubelet and no
//! controllers run; the tests create pods and say what a kubelet would, and simulated model servers stand for their containers.
//!
//! `make test` gets what is needed (`scripts/get-kube`). Most tests share one API server, each in a namespace of its own.

#[path = "process/harness.rs"]
#[allow(dead_code, reason = "shared with other test programs; each uses its part")]
mod harness;
#[path = "shared/helm.rs"]
mod helm;
#[path = "support/page.rs"]
#[allow(dead_code, reason = "shared with other test programs; each uses its part")]
mod page;
#[path = "support/stack.rs"]
#[allow(dead_code, reason = "shared with other test programs; each uses its part")]
mod stack;

#[path = "cluster/access.rs"]
mod access;
#[path = "cluster/apiserver.rs"]
mod apiserver;
#[path = "cluster/chart.rs"]
mod chart;
#[path = "cluster/churn.rs"]
mod churn;
#[path = "cluster/conformance.rs"]
mod conformance;
#[path = "cluster/definitions.rs"]
mod definitions;
#[path = "cluster/echo_h2c.rs"]
mod echo_h2c;
#[path = "cluster/kubelet.rs"]
mod kubelet;
#[path = "cluster/policies.rs"]
mod policies;
#[path = "cluster/replicas.rs"]
mod replicas;
#[path = "cluster/tutorial.rs"]
mod tutorial;
#[path = "cluster/watch.rs"]
mod watch;
#[path = "cluster/world.rs"]
mod world;

/// A variable of the environment, if it is set to anything.
fn variable(name: &str) -> Option<String> {
    std::env::vars().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value)
}
