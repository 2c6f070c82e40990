//! Everything that talks to a Kubernetes API server, and the only importer of kube and k8s-openapi.
//!
//! Losing the API server never stops routing: what was last seen stays in force.

pub mod lease;
pub mod reviews;

use std::fmt;

/// A connection to the API server, shared by everything that needs it. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// There is no usable description of an API server.
#[derive(Debug, thiserror::Error)]
#[error("no Kubernetes API server can be reached from here: {0}")]
pub struct NoCluster(String);

impl Cluster {
    /// The API server of `KUBECONFIG` or `~/.kube/config`, or the one whose pod this process runs in.
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// Neither is there, or what is there cannot be used.
    pub async fn connect() -> Result<Self, NoCluster> {
        let config = kube::Config::infer().await.map_err(|e| NoCluster(e.to_string()))?;
        Ok(Self { client: kube::Client::try_from(config).map_err(|e| NoCluster(e.to_string()))? })
    }

    /// A cluster behind `client`, for tests.
    pub fn of(client: kube::Client) -> Self {
        Self { client }
    }

    /// The client.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }
}

#[cfg(test)]
pub(crate) mod fake_api;
