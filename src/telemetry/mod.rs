//! What the job tells about itself: logs on stderr, and health and metrics on the admin port.

pub mod admin;
pub mod health;
pub mod logs;
pub mod metrics;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use admin::Admin;
pub use health::Health;

use crate::Result;

/// Health and metrics of one running job, shown on the admin port where there is one. Dropping it closes the port.
#[derive(Debug)]
pub struct Telemetry {
    pub health: Health,
    shutdown: CancellationToken,
    server: Option<JoinHandle<()>>,
}

impl Telemetry {
    /// Binds the port before anything else happens; without one, metrics are not collected at all.
    pub async fn start(listen: Option<SocketAddr>, lanes: usize) -> Result<Telemetry> {
        let (health, shutdown) = (Health::new(lanes), CancellationToken::new());
        let Some(listen) = listen else {
            return Ok(Telemetry { health, shutdown, server: None });
        };
        let admin = Admin::bind(listen).await?;
        tracing::info!("health and metrics on http://{}", admin.address());
        if !admin.address().ip().is_loopback() {
            tracing::warn!(
                "the admin port {} asks nobody who they are: let only scrapers and orchestrators reach it, or set [admin] \
                 listen to a loopback address",
                admin.address()
            );
        }
        let serving = admin.serve(metrics::install()?, health.clone(), shutdown.clone().cancelled_owned());
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!("{error}");
            }
        });
        Ok(Telemetry { health, shutdown, server: Some(server) })
    }

    /// Finishes the requests under way, within a second.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        if let Some(mut server) = self.server.take()
            && tokio::time::timeout(Duration::from_secs(1), &mut server).await.is_err()
        {
            server.abort();
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}
